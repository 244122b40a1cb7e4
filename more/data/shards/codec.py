"""Image and mask bytes to arrays and back (OpenCV)."""

from __future__ import annotations

import cv2
import numpy as np

from more.errors import UserError

# Pixels as stored: masks are drawn on stored pixels, so an EXIF rotation tag is not applied.
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(data: bytes, name: str) -> np.ndarray:
    """JPEG or PNG bytes → RGB uint8 `[H, W, 3]`.

    The content decides the format, not a file name. Grey images become three equal channels,
    CMYK becomes RGB, 16-bit becomes 8-bit, transparency is dropped, EXIF rotation is ignored.

    Args:
        data: the encoded file.
        name: what to call the image in an error.

    Raises:
        UserError: the bytes are not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOUR) if data else None
    if image is None:
        raise UserError(f"{name}: cannot be decoded as an image",
                        fix="replace the file by a readable JPEG or PNG, or take it off the list")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Index PNG bytes → uint8 `[H, W]`; 0 background, 1..C classes, 255 ignore.

    Raises:
        UserError: the bytes are not a one-channel 8-bit image.
    """
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise UserError(f"{name}: mask is not an 8-bit index PNG",
                        fix="build the shard set again from masks with one index per pixel")
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """uint8 `[H, W]` → palette-free 8-bit PNG bytes."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is uint8 [H, W], got {mask.dtype} {mask.shape}")
    return cv2.imencode(".png", mask)[1].tobytes()


def mask_values(mask: np.ndarray) -> np.ndarray:
    """The values that occur in a uint8 mask, ascending."""
    return np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))
