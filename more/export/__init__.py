"""Masks as files that other tools read: PNG, COCO JSON, VOC's test server, a training folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from more.errors import UserError
from more.export.png import export_png
from more.progress import Tally

__all__ = ["FORMATS", "export_masks", "export_png"]

# Options that each format takes beside the masks and `--out`.
FORMATS = {"png": ("palette",), "rle": ("data", "panoptic"), "voc-server": ("list", "fill_ignore"),
           "training": ("data", "val_share", "seed")}


def export_masks(masks: Path, out: Path, format: str = "png", progress: bool = True,
                 **options: Any) -> Tally:
    """Write masks in one of `FORMATS`; see the function of each for its options.

    Args:
        masks: shard set of kind `masks`, or `images` with masks.
        out: a folder (png, training), `NAME.json` (rle) or `NAME.tar.gz` (voc-server).
        format: png, rle, voc-server or training.
        progress: show a progress line.
        options: by name; None means not given.

    Returns:
        Counts of images.

    Raises:
        UserError: an option that the format does not take, or lacks, or what the format refuses.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(format, given)
    if format == "png":
        return export_png(masks, out, progress=progress, **given)
    if format == "rle":
        from more.export.rle import export_coco

        return export_coco(masks, out, progress=progress, **given)
    if format == "voc-server":
        from more.export.voc_server import export_voc_server

        return export_voc_server(masks, out, list_file=given.get("list"),
                                 fill_ignore=given.get("fill_ignore"), progress=progress)
    from more.export.training_folder import export_training

    return export_training(masks, out, progress=progress, **given)


def _check_options(format: str, given: dict[str, Any]) -> None:
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown", f"choose one of {', '.join(FORMATS)}")
    for name in given:
        if name not in FORMATS[format]:
            takers = [other for other, names in FORMATS.items() if name in names]
            raise UserError(f"--{name.replace('_', '-')}: not an option of --format {format}",
                            fix=f"leave it out, or choose --format {' or '.join(takers)}")
    if format == "training" and "data" not in given:
        raise UserError("--format training needs the images",
                        fix="give --data SET, the image set that the masks were made from")
