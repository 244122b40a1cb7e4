"""Names of classes on pictures: where they go, and drawn into the picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from more.data.shards.format import IGNORE
from more.palette import ink_on

_SMALLEST = 0.002  # of the picture: smaller objects get no name


def name_places(label: np.ndarray) -> list[tuple[int, int, int]]:
    """Pixel value, row and column of the place for each class's name: deep inside its largest part.

    Args:
        label: uint8 `[H, W]`; background (0) and 255 get no name, nor do specks.
    """
    places = []
    for value in np.unique(label).tolist():
        if value in (0, IGNORE):
            continue
        # A frame of zeros, so that the picture's border counts as the object's.
        inside = np.pad((label == value).astype(np.uint8), 1)
        count, parts, facts, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
        largest = 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else 0
        if facts[largest, cv2.CC_STAT_AREA] < _SMALLEST * label.size:
            continue
        depth = cv2.distanceTransform((parts == largest).astype(np.uint8), cv2.DIST_L2, 3)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        places.append((value, int(row) - 1, int(column) - 1))
    return places


def draw_names(picture: np.ndarray, label: np.ndarray, names: Sequence[str],
               colours: np.ndarray) -> np.ndarray:
    """The picture with each class's name in a box of its colour; boxes do not cover one another.

    Args:
        picture: uint8 `[H, W, 3]`. label: uint8 `[H, W]`.
        names: of the classes from pixel value 1 on. colours: uint8 `[256, 3]`.
    """
    places = [place for place in name_places(label) if place[0] <= len(names)]
    if not places:
        return picture
    height, width = picture.shape[:2]
    size = max(round(max(height, width) / 32), 9)
    canvas = Image.fromarray(picture)
    pen, taken = ImageDraw.Draw(canvas), []
    for value, row, column in places:
        text = drawable(names[value - 1])
        left, top, right, bottom = pen.textbbox((0, 0), text, font(size))
        wide, high = right - left + size, bottom - top + size // 2
        if wide > width or high > height:
            continue  # a picture too small for words; the legend beside it has them
        x = int(np.clip(column - wide // 2, 0, width - wide))
        y = _free(int(np.clip(row - high // 2, 0, height - high)), x, wide, high, taken, height)
        taken.append((x, y, x + wide, y + high))
        pen.rounded_rectangle(taken[-1], size // 4, tuple(colours[value].tolist()),
                              ink_on(colours[value]))
        pen.text((x + size // 2 - left, y + size // 4 - top), text, ink_on(colours[value]),
                 font(size))
    return np.asarray(canvas)


def _free(y: int, x: int, wide: int, high: int, taken: list[tuple[int, int, int, int]],
          height: int) -> int:
    """The row nearest to `y` at which the box covers none of those drawn; `y` if there is none."""
    for move in range(0, height, max(high // 3, 1)):
        for place in (y + move, y - move):
            if 0 <= place <= height - high and not any(
                    x < right and left < x + wide and place < bottom and top < place + high
                    for left, top, right, bottom in taken):
                return place
    return y


def drawable(text: str) -> str:
    """The text with every letter that the font lacks as `\\u5199`: names stay told apart."""
    known = _letters()
    return "".join(letter if ord(letter) in known else
                   letter.encode("ascii", "backslashreplace").decode("ascii") for letter in text)


def fitted(text: str, width: int, size: int) -> str:
    """The text, shortened in its middle until it is at most `width` pixels long.

    Args:
        text: to be drawn.
        width: in pixels.
        size: of the font.
    """
    keep = len(text)
    while keep > 2 and round(font(size).getlength(_cut(text, keep))) > width:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    if keep >= len(text):
        return text
    return f"{text[:(keep + 1) // 2]}…{text[len(text) - keep // 2:]}"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic and more."""
    return ImageFont.truetype(str(_file()), size)


@cache
def _file() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_file())).get_charmap())
