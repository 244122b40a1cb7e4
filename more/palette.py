"""Colours of labels: the palette of PASCAL VOC, and masks painted over images."""

from __future__ import annotations

import cv2
import numpy as np

NO_LABEL = 255
"""The value of pixels without a label."""
LINE = "#3b7dd8"
"""Colour of the lines in charts."""


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC, uint8 [256, 3]: the bits of an index, dealt out to R, G, B.

    Bits 0, 3, 6 go to red, 1, 4, 7 to green, 2, 5 to blue, the lowest ones to the highest bit.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    bits = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # [index, triple, channel]
    weights = np.array([128, 64, 32])
    return (bits * weights[:, None]).sum(1).astype(np.uint8)


PALETTE = voc_palette()


def colour_of(label: int) -> str:
    """A label's colour as `#rrggbb`; light grey for 255."""
    return "#e0e0e0" if label == NO_LABEL else f"#{bytes(PALETTE[label]).hex()}"


def mask_overlay(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A label map in VOC colours over the dimmed image; 255 in light grey, white outlines.

    Args:
        image: [H, W, 3] uint8 RGB.
        label: [H, W] uint8.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    colours = PALETTE.copy()
    colours[NO_LABEL] = 224
    painted = cv2.addWeighted(image, 0.25, colours[label], 0.75, 0)
    dimmed = cv2.addWeighted(image, 0.55, np.zeros_like(image), 0.45, 0)
    mixed = np.where((label > 0)[..., None], painted, dimmed)
    mixed[outline(label)] = 255
    return mixed


def outline(label: np.ndarray) -> np.ndarray:
    """True on the pixels above or left of a change of label, [H, W]."""
    edge = np.zeros(label.shape, bool)
    edge[:-1] |= label[:-1] != label[1:]
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    return edge
