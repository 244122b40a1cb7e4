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


def align_mask(mask: np.ndarray, size: tuple[int, int], image: bytes, name: str) -> np.ndarray:
    """The mask on the image's pixels as they are stored.

    Images keep their stored orientation (see `decode_image`). A mask that was drawn on the image
    as viewers turn it by its EXIF tag is turned back, where its size shows that.

    Args:
        mask: uint8 `[H, W]`.
        size: height and width of the stored image.
        image: the encoded image.
        name: what to call the mask in an error.

    Raises:
        UserError: the mask has another size.
    """
    if mask.shape == size:
        return mask
    if mask.shape == size[::-1]:
        turns = _EXIF_BACK.get(exif_orientation(image))
        if turns is not None:
            return np.ascontiguousarray(turns(mask))
    raise UserError(f"{name}: mask is {mask.shape[0]}x{mask.shape[1]}, the image "
                    f"{size[0]}x{size[1]} (height x width)",
                    fix="make the mask again at the size of the image")


def exif_orientation(image: bytes) -> int:
    """EXIF orientation of an encoded image, 1 (as stored) to 8; 1 where there is none."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return int(opened.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError):
        return 1


# From the picture as viewers show it back to the stored pixels, for the tags that swap the sides.
_ORIENTATION = 0x0112
_EXIF_BACK = {5: lambda m: m.T, 6: lambda m: np.rot90(m, 1), 7: lambda m: np.rot90(m, 2).T,
              8: lambda m: np.rot90(m, -1)}


def check_values(mask: np.ndarray, num_classes: int, path: Path | None) -> None:
    """Raise UserError when a mask holds a class that the list of classes does not have."""
    values = mask_values(mask)
    strange = values[(values > num_classes) & (values != IGNORE)]
    if len(strange):
        raise UserError(f"{path}: mask value {int(strange[-1])}, but there are {num_classes} "
                        "classes and background",
                        fix="give the list of classes that belongs to these masks (--classes)")
