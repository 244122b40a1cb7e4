"""Pictures of single images: heat maps, and label maps in colours with the classes' names."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from more.data.shards.format import IGNORE
from more.evaluation.captions import draw_names
from more.palette import GREY, PALETTE, colour_of

__all__ = ["LONGEST_SIDE", "PALETTE", "colour_of", "heat_overlay", "mask_overlay", "outline",
           "thumbnail"]
LONGEST_SIDE = 300
_TINT = 0.55  # of a class's colour over its pixels


def thumbnail(image: np.ndarray, nearest: bool = False, side: int = LONGEST_SIDE) -> np.ndarray:
    """An image or label map, reduced so that its longer side is at most `side` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return cv2.resize(image, size,
                      interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)


def heat_overlay(image: np.ndarray, value: np.ndarray, label: np.ndarray | None = None
                 ) -> np.ndarray:
    """A map in turbo colours over the image, with the outline of its thresholded label.

    Args:
        image: uint8 `[H, W, 3]`. value: `[H, W]` in 0..1. label: `[H, W]`, 0 = background.
    """
    heat, weight = heat_layer(value)
    mixed = (image * (1 - weight) + heat * weight).round().astype(np.uint8)
    if label is not None:
        mixed[outline(label)] = 255
    return mixed


def heat_layer(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turbo colours uint8 `[H, W, 3]` of a map in 0..1, and how far they cover `[H, W, 1]`.

    Where the map says nothing the image stays as it is.
    """
    value = np.clip(np.nan_to_num(value), 0, 1).astype(np.float32)
    heat = cv2.applyColorMap((value * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return heat, (0.75 * np.minimum(1.6 * value, 1))[..., None]


def mask_overlay(image: np.ndarray, label: np.ndarray, colours: np.ndarray = PALETTE,
                 names: Sequence[str] | None = None) -> np.ndarray:
    """A label map in colours over the image, which stays as it is outside the objects.

    Args:
        image: uint8 `[H, W, 3]`.
        label: uint8 `[H, W]`; 255 is shown in light grey.
        colours: uint8 `[256, 3]` by pixel value.
        names: of the classes from pixel value 1 on; given, they are written on their objects.
    """
    painted = colours[label].astype(np.float32)
    painted[label == IGNORE] = GREY
    mixed = image.copy()
    inside = label > 0
    mixed[inside] = (image[inside] * (1 - _TINT) + painted[inside] * _TINT).round()
    edge = outline(label)
    width = max(round(max(label.shape) / 400), 1)
    if width > 1:
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool)
    mixed[edge] = 255
    return draw_names(mixed, label, names, colours) if names else mixed


def outline(label: np.ndarray) -> np.ndarray:
    """True on the pixels above or left of a change of label, `[H, W]`."""
    edge = np.zeros(label.shape, bool)
    edge[:-1] |= label[:-1] != label[1:]
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    return edge
