"""Image and mask bytes to arrays and back.

OpenCV decodes; Pillow reads headers, GIF and rare formats. H and W are height and width.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from more.errors import UserError

# Pixels as stored: masks are drawn on stored pixels, so an EXIF rotation tag is not applied.
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# What Pillow raises for bytes that are no image, or one that is too large to be true.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


# First bytes of the formats that shards hold, with their file endings: formats that every program
# can read.
COMMON = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"RIFF": "webp",
          b"II*\0": "tif", b"MM\0*": "tif", b"BM": "bmp"}
# Other formats that sets of earlier versions may hold.
RARE = {b"\0\0\0\x0cjP  ": "jp2", b"\xff\x4f\xff\x51": "j2k", b"P1": "pbm", b"P4": "pbm",
        b"P2": "pgm", b"P5": "pgm", b"P3": "ppm", b"P6": "ppm", b"II+\0": "tif", b"MM\0+": "tif"}
# Formats in a container, whose name follows the four bytes of its length.
_CONTAINED = {b"ftypavif": "avif", b"ftypavis": "avif"}


def file_ending(data: bytes | bytearray) -> str | None:
    """The file ending that fits the content (`jpg`, `png`, …); None if the format is unknown."""
    known = {**COMMON, **RARE}
    found = next((ending for start, ending in known.items() if data.startswith(start)), None)
    return found or _CONTAINED.get(bytes(data[4:12]))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode an image file of any format that OpenCV or Pillow knows.

    The content decides the format, not the file's name. Grey images become three equal channels,
    CMYK becomes RGB, 16 bits become 8 bits, transparency is dropped, EXIF rotation is ignored, and
    of several frames the first is taken.

    Args:
        data: the encoded file.
        name: what to call the image in an error.

    Returns:
        RGB uint8 `[H, W, 3]`.

    Raises:
        UserError: the bytes are not an image.
    """
    image = None if data[:4] == b"GIF8" else _imdecode(data, _COLOUR)
    return _decode_pillow(data, name) if image is None else image


def decode_whole(data: bytes, name: str) -> np.ndarray:
    """`decode_image` for files from outside, which may be cut short.

    Args:
        data: the encoded file.
        name: what to call the image in an error.

    Returns:
        RGB uint8 `[H, W, 3]`.

    Raises:
        UserError: not an image, or cut short (OpenCV would fill the missing part with grey).
    """
    pixels = decode_image(data, name)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
    except UNREADABLE as error:
        raise UserError(f"{name}: damaged image ({error})", fix="replace the file") from error
    return pixels


def to_store(data: bytes, pixels: np.ndarray) -> bytes:
    """What a shard stores of an image: its file as it is, or a PNG of its pixels.

    A PNG replaces formats and compressions that other programs may not know: AVIF, JPEG 2000, PPM,
    TIFF with a compression that OpenCV lacks, and whatever else Pillow opens.

    Args:
        data: the file.
        pixels: from `decode_image`.

    Returns:
        `data` itself, or the PNG.
    """
    common = any(data.startswith(start) for start in COMMON)
    if common and (data[:2] not in (b"II", b"MM") or _imdecode(data, _COLOUR) is not None):
        return data
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Size of an encoded image by its header; no pixel is decoded.

    Args:
        data: the encoded image.
        name: what to call the image in an error.

    Returns:
        Height and width.

    Raises:
        UserError: the bytes do not begin like an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.height, opened.width
    except UNREADABLE as error:
        raise _unreadable(name) from error


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decode an index PNG.

    Args:
        data: the PNG.
        name: what to call the mask in an error.

    Returns:
        uint8 `[H, W]`: 0 background, 1..C classes, 255 ignore.

    Raises:
        UserError: the bytes are not a one-channel 8-bit image.
    """
    mask = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise UserError(f"{name}: mask is not an 8-bit index PNG",
                        fix="build the shard set again from masks with one index per pixel")
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask uint8 `[H, W]` as an 8-bit PNG without palette."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is uint8 [H, W], got {mask.dtype} {mask.shape}")
    return cv2.imencode(".png", mask)[1].tobytes()


def mask_values(mask: np.ndarray) -> np.ndarray:
    """The values that occur in a uint8 mask, ascending."""
    return np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))


def _imdecode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # a header that promises more than 2^30 pixels
        return None


def _decode_pillow(data: bytes, name: str) -> np.ndarray:
    """Decode by Pillow: GIF (OpenCV changes its transparent pixels) and what OpenCV cannot read."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return pillow_pixels(opened, name)
    except UNREADABLE as error:
        raise _unreadable(name) from error


def pillow_pixels(opened: Image.Image, name: str) -> np.ndarray:
    """Pixels of a Pillow image, of any mode.

    Args:
        opened: the image; its file may not be decoded yet.
        name: what to call it in an error.

    Returns:
        RGB uint8 `[H, W, 3]`.

    Raises:
        UserError: pixels of 32 bits, or a file that cannot be decoded.
    """
    try:
        if opened.mode.startswith("I;16"):
            high = (np.asarray(opened) >> 8).astype(np.uint8)
            return np.repeat(high[..., None], 3, axis=2)
        if opened.mode in ("I", "F"):
            raise UserError(f"{name}: pixels of 32 bits are no colours",
                            fix="export the image with 8 or 16 bits per channel")
        return np.array(opened.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(name) from error


def _unreadable(name: str) -> UserError:
    return UserError(f"{name}: cannot be decoded as an image",
                     fix="replace the file by a readable JPEG or PNG, or take it off the list")
