"""Checks of image and mask files before they enter a shard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.codec import decode_image, mask_values
from more.data.shards.format import IGNORE
from more.errors import UserError


def check_image(data: bytes, path: Path) -> tuple[int, int]:
    """Height and width of an encoded image, pixels as stored.

    Raises:
        UserError: not an image, or cut short (OpenCV would fill the missing part with grey).
    """
    height, width = decode_image(data, str(path)).shape[:2]
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged image ({error})", fix="replace the file") from error
    return height, width


def read_index_png(path: Path) -> np.ndarray:
    """Index mask file → uint8 `[H, W]`; the palette's colours do not matter.

    Raises:
        UserError: no such file, not an image, lossy, in colour, or indices above 255.
    """
    try:
        with Image.open(path) as image:
            if image.format == "JPEG" or image.mode not in ("P", "L", "1", "I", "I;16"):
                raise UserError(f"{path}: mask is a {image.mode} {image.format}, not indices",
                                fix="store masks as PNG with one class index per pixel")
            mask = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: unreadable mask ({error})", fix="replace the file") from error
    if mask.max(initial=0) > IGNORE or mask.min(initial=0) < 0:
        raise UserError(f"{path}: mask value {int(mask.max())} is above {IGNORE}")
    return mask.astype(np.uint8)


def check_values(mask: np.ndarray, num_classes: int, path: Path | None) -> None:
    """Raise UserError when a mask holds a class that the list of classes does not have."""
    values = mask_values(mask)
    strange = values[(values > num_classes) & (values != IGNORE)]
    if len(strange):
        raise UserError(f"{path}: mask value {int(strange[-1])}, but there are {num_classes} "
                        "classes and background",
                        fix="give the list of classes that belongs to these masks (--classes)")
