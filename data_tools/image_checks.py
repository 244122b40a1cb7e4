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

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from more.data.index_masks import read_index_png
from more.data.shards.codec import decode_whole, mask_values, to_store
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
