"""Odd image files, made by hand or by Pillow: CMYK, 16-bit, transparent, animated, turned."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

H, W = 40, 60
ORIENTATION = 0x0112


def ramp() -> Image.Image:
    """Three different channels without symmetry."""
    pixels = np.full((H, W, 3), 90, np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, W), np.linspace(0, 200, H)[:, None]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quadrants(height: int = H, width: int = W) -> np.ndarray:
    """A mask without symmetry: three classes, ignore, background."""
    mask = np.zeros((height, width), np.uint8)
    mask[:height // 2, :width // 3], mask[height // 2:, :width // 4] = 1, 2
    mask[:height // 4, width // 2:], mask[-1] = 3, 255
    return mask


def png(depth: int, colour: int, rows: bytes, size: tuple[int, int]) -> bytes:
    """A PNG written by hand, for what Pillow cannot write."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def deep(channels: int) -> bytes:
    """16-bit PNG of the ramp; the low bytes are noise that must not matter."""
    high = np.asarray(ramp() if channels == 3 else ramp().convert("L"), np.uint16)
    low = np.random.default_rng(0).integers(0, 256, high.shape, dtype=np.uint16)
    rows = (high * 256 + low).astype(">u2").reshape(H, -1)
    return png(16, 2 if channels == 3 else 0, b"".join(b"\0" + row.tobytes() for row in rows),
               (H, W))


def inks(adobe: bool, transform: int = 0) -> bytes:
    """A smooth CMYK picture with black, as Pillow and Adobe's programs write it, or unmarked."""
    four = np.random.default_rng(1).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(four, "CMYK").resize((W, H), Image.Resampling.BICUBIC), "JPEG",
                   quality=98, subsampling=0)
    start = data.index(b"\xff\xee")
    stop = start + 2 + int.from_bytes(data[start + 2:start + 4], "big")
    if not adobe:
        return data[:start] + data[stop:]
    return data[:stop - 1] + bytes([transform]) + data[stop:]


def frames(kind: str, **options: object) -> bytes:
    """An animation that begins with the ramp."""
    more = [Image.new("RGB", (W, H), colour) for colour in ("green", "blue")]
    return encoded(ramp(), kind, save_all=True, append_images=more, duration=90, **options)


def glass() -> Image.Image:
    """The ramp with alpha from 0 to 236."""
    image = ramp()
    image.putalpha(Image.fromarray(np.tile(np.arange(W, dtype=np.uint8) * 4, (H, 1))))
    return image


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """The ramp with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(ramp(), kind, exif=exif)


CLEAR = {"lossless": True, "exact": True}
PICTURES = {
    "cmyk": inks(True), "ycck": inks(True, 2), "cmyk-unmarked": inks(False),
    "grey-jpeg": encoded(ramp().convert("L"), "JPEG"), "grey": encoded(ramp().convert("L"), "PNG"),
    "deep": deep(3), "deep-grey": deep(1), "alpha": encoded(glass(), "PNG"),
    "grey-alpha": encoded(glass().convert("LA"), "PNG"), "webp-alpha": encoded(
        glass(), "WEBP", **CLEAR),
    "palette": encoded(ramp().quantize(16), "PNG"), "bits": encoded(ramp().convert("1"), "PNG"),
    "palette-clear": encoded(ramp().quantize(16), "PNG", transparency=3),
    "gif-clear": encoded(ramp().quantize(16), "GIF", transparency=3),
    "gif": frames("GIF"), "apng": frames("PNG"), "webp": frames("WEBP", **CLEAR),
    "pages": frames("TIFF"), "bmp": encoded(ramp(), "BMP"),
    "one-pixel": encoded(Image.new("RGB", (1, 1), (9, 80, 200)), "PNG"),
    **{f"exif-{k}": turned(k) for k in range(2, 9)},
    **{f"exif-png-{k}": turned(k, "PNG") for k in range(2, 9)},
}
