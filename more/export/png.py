"""Masks as one PNG file per image, and what their pixel values mean."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.format import IGNORE, remove_temporaries, sync
from more.data.shards.lock import folder_lock
from more.errors import UserError
from more.export.opened_sets import open_masks
from more.export.output_files import reason, replace_file
from more.palette import voc_palette
from more.progress import Tally, track

CLASSES, COLOURS = "classes.txt", "colours.csv"
_HEADER = ["index", "name", "colour"]


def export_png(masks: Path, out: Path, palette: bool = True, progress: bool = True) -> Tally:
    """Write `ID.png` for every mask: pixel values are the indices 0..C and 255.

    Each file gets its name only when it is complete. A file that already holds the same bytes is
    left alone and counted as skipped. Beside the masks lie `classes.txt`, the class names from
    index 1 on, one a line, as `data_tools.folder --classes` reads it, and `colours.csv` with index,
    name and colour of every value.

    Args:
        masks: shard set of kind `masks`, or `images` with masks.
        out: folder, made when missing.
        palette: index PNG with the PASCAL VOC colours; False gives plain grey index PNG.
        progress: show a progress line.

    Returns:
        Counts of images; an image without mask or with damaged bytes fails, the others go on.

    Raises:
        UserError: not a set of masks, another process writes to `out`, or files named
            `classes.txt` and `colours.csv` there are of something else.
    """
    source, out = open_masks(masks), Path(out)
    _refuse_other_classes(out, source.class_names)
    tally, colours = Tally("masks"), voc_palette() if palette else None
    with folder_lock(out), track(len(source), "export", "masks", disable=not progress) as bar:
        remove_temporaries(out)
        replace_file(out / CLASSES, _lines(source.class_names))
        replace_file(out / COLOURS, _colour_table(source.class_names, colours))
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


def _lines(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode("utf-8")


def _colour_table(names: list[str], palette: np.ndarray | None) -> bytes:
    """CSV: index, name and `#rrggbb` as the PNG files show it (grey levels without a palette)."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours = grey if palette is None else palette
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for index, name in [*enumerate(["background", *names]), (IGNORE, "ignored")]:
        writer.writerow([index, name, f"#{colours[index].tobytes().hex()}"])
    return text.getvalue().encode("utf-8")


def _refuse_other_classes(out: Path, names: list[str]) -> None:
    """Raise where a file that would be written over means something else."""
    wanted = {CLASSES: _lines(names), COLOURS: ",".join(_HEADER).encode("utf-8")}
    for name, start in wanted.items():
        path = out / name
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(start)
                                  and (name == COLOURS or path.stat().st_size == len(start))):
            raise UserError(f"{path}: is not of an export of these classes",
                            fix="choose another --out, or move this file away")
