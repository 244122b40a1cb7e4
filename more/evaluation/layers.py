"""Layers of a picture for the report: the photograph once, and over it transparent maps and masks.

So the picture stays bright where nothing is painted, the page holds each photograph once, and
the browser can fade and wipe between the layers.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from more.data.shards.format import IGNORE
from more.evaluation.captions import name_places
from more.evaluation.pictures import heat_layer, outline, thumbnail
from more.palette import GREY, colour_of, ink_on

SIDES = (640, 560, 480, 400, 340, 280, 220, 160)
MASK_SIDE, HEAT_SIDE = 400, 240
_COVER = 0.6  # of a class's colour over its pixels


def photograph(image: np.ndarray, most: int) -> str:
    """An RGB picture as a data URI of at most `most` bytes: as large as fits, but for the least."""
    for side in SIDES:
        uri = data_uri(thumbnail(image, side=side), quality=82)
        if len(uri) <= most:
            break
    return uri


def heat_uri(value: np.ndarray, label: np.ndarray | None) -> str:
    """A map `[H, W]` in 0..1 in turbo colours, transparent where it says nothing.

    Args:
        label: its thresholded label `[H, W]`, drawn as an outline; None: no outline.
    """
    heat, weight = heat_layer(thumbnail(value, side=HEAT_SIDE))
    layer = np.concatenate([heat, (255 * weight).round().astype(np.uint8)], 2)
    if label is not None:
        layer[outline(thumbnail(label, nearest=True, side=HEAT_SIDE))] = 255
    return data_uri(layer, quality=70)


def label_uri(label: np.ndarray, colours: np.ndarray) -> str:
    """A label map `[H, W]` in its classes' colours with white outlines; background transparent."""
    label = thumbnail(label, nearest=True, side=MASK_SIDE)
    layer = np.zeros((*label.shape, 4), np.uint8)
    layer[..., :3] = colours[label]
    layer[label == IGNORE, :3] = GREY
    layer[label > 0, 3] = round(255 * _COVER)
    layer[outline(label)] = (255, 255, 255, 235)
    return data_uri(layer, quality=101)


def data_uri(picture: np.ndarray, quality: int) -> str:
    """An RGB or RGBA picture as `data:image/webp;base64,…`; quality above 100 is lossless."""
    order = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(".webp", cv2.cvtColor(picture, order),
                              [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done, "encoding an 8-bit picture cannot fail"
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def name_labels(label: np.ndarray, names: Sequence[str], colours: np.ndarray
                ) -> list[dict[str, Any]]:
    """Name, colours and place (in per cent of width and height) of every class of a label map."""
    height, width = label.shape
    return [{"name": names[value - 1], "colour": colour_of(value, colours),
             "ink": f"#{bytes(ink_on(colours[value])).hex()}",
             "x": round(100 * (column + 0.5) / width, 1), "y": round(100 * (row + 0.5) / height, 1)}
            for value, row, column in name_places(label) if value <= len(names)]
