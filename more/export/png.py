"""Masks as one PNG file per image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.format import remove_temporaries, sync
from more.data.shards.lock import folder_lock
from more.errors import UserError
from more.export.opened_sets import open_masks
from more.export.output_files import reason, replace_file
from more.palette import voc_palette
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
