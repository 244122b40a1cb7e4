"""Checks of image and mask files before they enter a shard, and what becomes of unusual ones.

| input | result |
|---|---|
| PNG named .jpg, JPEG named .png | the content decides; the bytes are stored as they are |
| AVIF, JPEG 2000, PPM, rare TIFF, … | stored as PNG, which every later reader knows; counted |
| grey, palette, 1 bit | RGB: three equal channels, or the palette's colours |
| 16 bits per channel | RGB of the high bytes |
| CMYK or YCCK JPEG | RGB; inks are read inverted, as Adobe's programs write them |
| transparency (alpha, palette, GIF) | dropped; the colour below it shows |
| several frames (GIF, PNG, WebP, TIFF) | the first frame |
| 1x1 pixel | kept |
| EXIF orientation 2 to 8 | ignored: pixels as stored; a TIFF is turned by its tag |
| mask of such an image, 5 to 8 | drawn on the picture as viewers turn it: turned back |
| … of the stored size, 2 to 4, square | taken to lie on the stored pixels: size cannot tell |
| mask in 16 bits, with a palette, in 1 bit | its indices |
| mask in grey with 2 or 4 bits | refused: readers stretch these values to 0..255 |
| mask as JPEG | refused |
| mask in colour | refused; by its colours with `--colours FILE` or a `labelmap.txt` |
| mask of another size | refused |
| mask value that is no class and not 255 | refused, unless `--mask-values` says what it means |
| no mask of the set shows a class (only 0 and 255) | refused before any work |
| empty, cut short, damaged, a text, above 178 million pixels | refused |
| id in any script | kept letter for letter |
| file name that is not UTF-8 | refused before any work, named as bash takes it |
| id twice, or no possible file name | refused before any work |

"Refused" means that the image is named and its shard waits; `--skip-bad` leaves the image out
instead and records it in the manifest.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.codec import UNREADABLE, decode_whole, mask_values, to_store
from more.data.shards.format import IGNORE
from more.errors import UserError

PROBES = 40  # masks looked at before the work starts


def check_image(data: bytes, path: Path) -> tuple[bytes, tuple[int, int]]:
    """Check an image and choose what to store of it.

    Args:
        data: the encoded image.
        path: its file, for messages.

    Returns:
        What to store (see `to_store`), and its height and width.

    Raises:
        UserError: not an image, or cut short (OpenCV would fill the missing part with grey).
    """
    pixels = decode_whole(data, str(path))
    return to_store(data, pixels), pixels.shape[:2]


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


def check_values(mask: np.ndarray, num_classes: int, path: Path | None) -> None:
    """Refuse a mask with a value that is no class.

    Args:
        mask: uint8 `[H, W]`.
        num_classes: foreground classes.
        path: its file, for messages.

    Raises:
        UserError: it holds one that is neither 0..`num_classes` nor 255.
    """
    values = mask_values(mask)
    strange = values[(values > num_classes) & (values != IGNORE)]
    if len(strange):
        raise UserError(f"{path}: mask value {int(strange[-1])}, but there are {num_classes} "
                        "classes and background",
                        fix="give the list of classes that belongs to these masks (--classes), or "
                            f"say what values mean: --mask-values {int(strange[-1])}=NAME")


def probe_masks(masks: Sequence[Path], num_classes: int,
                read: Callable[[Path], np.ndarray] = read_index_png) -> None:
    """Look at some masks, evenly spread, so that a wrong list of classes shows at once.

    Where none of these shows a class, all others are looked at until one does.

    Args:
        masks: mask files; the first one is always looked at.
        num_classes: foreground classes.
        read: mask file → uint8 `[H, W]`.

    Raises:
        UserError: a mask cannot be read, or holds a value that is no class; or no mask at all
            shows a class, as where the objects are 255, which means ignore.
    """
    probes, held = masks[::max(len(masks) // PROBES, 1)], set()
    for path in probes:
        mask = read(path)
        check_values(mask, num_classes, path)
        held.update(mask_values(mask).tolist())
    rest = iter(sorted(set(masks) - set(probes)))
    while not held - {0, IGNORE} and (path := next(rest, None)) is not None:
        held.update(mask_values(read(path)).tolist())
    if masks and not held - {0, IGNORE}:
        names = {0: "0 (background)", IGNORE: f"{IGNORE} (ignore)"}
        raise UserError(
            f"{masks[0].parent}: no pixel of the {len(masks)} masks belongs to a class, they hold "
            f"only {' and '.join(names[value] for value in sorted(held))}",
            fix=f"say what the values mean: --mask-values {IGNORE}=NAME, with the class that "
                f"{IGNORE} stands for" if IGNORE in held else
                "export them again with the class of each pixel, or leave the masks away")
