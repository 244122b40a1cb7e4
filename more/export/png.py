"""Masks as one PNG file per image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.format import remove_temporaries, sync
from more.data.shards.lock import folder_lock
from more.errors import UserError
from more.export.common import open_masks, reason, replace_file
from more.progress import Tally, track


def export_png(masks: Path, out: Path, palette: bool = True, progress: bool = True) -> Tally:
    """Write `ID.png` for every mask: pixel values are the indices 0..C and 255.

    Each file gets its name only when it is complete. A file that already holds the same bytes is
    left alone and counted as skipped.

    Args:
        masks: shard set of kind `masks`, or `images` with masks.
        out: folder, made when missing.
        palette: index PNG with the PASCAL VOC colours; False gives plain grey index PNG.
        progress: show a progress line.

    Returns:
        Counts of images; an image without mask or with damaged bytes fails, the others go on.

    Raises:
        UserError: not a set of masks, or another process writes to `out`.
    """
    source, out = open_masks(masks), Path(out)
    tally, colours = Tally("masks"), voc_palette() if palette else None
    with folder_lock(out), track(len(source), "export", "masks", disable=not progress) as bar:
        remove_temporaries(out)
        for row, image_id in enumerate(source.ids):
            try:
                mask = source.mask(row)
                if mask is None:
                    raise UserError("has no mask")
                written = replace_file(out / f"{image_id}.png", encode_png(mask, colours))
                tally.ok() if written else tally.skip()
            except (UserError, OSError) as error:
                tally.fail(image_id, reason(error))
            bar.advance()
        sync(out)
    return tally


def encode_png(mask: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """uint8 [H, W] → PNG bytes; with a palette [256, 3] uint8 as an index image."""
    picture = Image.frombytes("L", (mask.shape[1], mask.shape[0]), mask.tobytes())
    if palette is not None:
        picture = Image.frombytes("P", picture.size, mask.tobytes())
        picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC, uint8 [256, 3]: the bits of an index, dealt out to R, G, B.

    Bits 0, 3, 6 go to red, 1, 4, 7 to green, 2, 5 to blue, the lowest ones to the highest bit.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    bits = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # [index, triple, channel]
    weights = np.array([128, 64, 32])
    return (bits * weights[:, None]).sum(1).astype(np.uint8)
