"""Index masks in files of their own: read, and laid on the pixels of their image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.codec import UNREADABLE
from more.data.shards.format import IGNORE
from more.errors import UserError


def read_index_png(path: Path) -> np.ndarray:
    """Read an index mask; the colours of its palette do not matter.

    Args:
        path: the file.

    Returns:
        uint8 `[H, W]`.

    Raises:
        UserError: no such file, not an image, lossy, in colour, stretched to 8 bits, or indices
            above 255.
    """
    try:
        with Image.open(path) as image:
            if image.format == "JPEG" or image.mode not in ("P", "L", "1", "I", "I;16"):
                raise UserError(f"{path}: mask is a {image.mode} {image.format}, not indices",
                                fix="store masks as PNG with one class index per pixel, or give "
                                    "the classes of the colours of PNG masks with --colours FILE")
            if image.tile and image.tile[0][3] in ("L;2", "L;4"):
                raise UserError(f"{path}: mask is grey with {image.tile[0][3][-1]} bits, which "
                                "readers stretch to 0..255",
                                fix="store masks as PNG with 8 bits per pixel")
            mask = np.asarray(image)
    except UNREADABLE as error:
        raise UserError(f"{path}: unreadable mask ({error})", fix="replace the file") from error
    if mask.max(initial=0) > IGNORE or mask.min(initial=0) < 0:
        raise UserError(f"{path}: mask value {int(mask.max())} is above {IGNORE}")
    return mask.astype(np.uint8)


def align_mask(mask: np.ndarray, size: tuple[int, int], image: bytes, name: str) -> np.ndarray:
    """Turn a mask so that it lies on the image's pixels as they are stored.

    Images keep their stored orientation (see `decode_image`). A mask may have been drawn on the
    image as viewers turn it by its EXIF tag; where its size shows that, it is turned back. A mask
    of the image's own size is taken to lie on the stored pixels.

    Args:
        mask: uint8 `[H, W]`.
        size: height and width of the stored image.
        image: the encoded image.
        name: what to call the mask in an error.

    Returns:
        uint8 `[H, W]`, of the size of the image.

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
    except (*UNREADABLE, TypeError):
        return 1


# From the picture as viewers show it back to the stored pixels, for the tags that swap the sides.
_ORIENTATION = 0x0112
_EXIF_BACK = {5: lambda m: m.T, 6: lambda m: np.rot90(m, 1), 7: lambda m: np.rot90(m, 2).T,
              8: lambda m: np.rot90(m, -1)}
