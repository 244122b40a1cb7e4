"""Masks as COCO JSON: run lengths per class and image, or panoptic segments with PNG files.

One annotation per class and image: instances of a class are not told apart. Background (0) and
pixels of value 255 belong to no annotation. The file is written piece by piece, so memory does not
grow with the masks; the same masks give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as run_lengths

from more.data.shards.codec import mask_values
from more.data.shards.format import IGNORE, MANIFEST, remove_temporaries
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.export.opened_sets import ending_of, mask_of, open_images, open_masks
from more.export.output_files import reason, replace_file, require_ending, whole_file, write_list
from more.palette import voc_palette
from more.progress import Tally, Tracker, track

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})")
_NOTE = "semantic masks: one region per class and image; pixels of value 255 belong to none"


@dataclass(frozen=True)
class _Source:
    """The masks, the images with their rows (None where there are none), ids of categories."""

    masks: ShardSet
    images: ShardSet | None
    rows: list[int]
    categories: list[dict[str, Any]]
    numbers: list[int]


def export_coco(masks: Path, out: Path, data: Path | None = None, panoptic: bool = False,
                progress: bool = True) -> Tally:
    """Write `out`, an instances-style or panoptic-style JSON file of all masks.

    Category ids are those of the COCO file that the set came from, where the image set or the
    masks' own manifest recorded them (`extra.categories`), else 1..C. Ids of images are the
    numbers in COCO's names (`000000000139`) if the categories are COCO's and all names are such,
    else 1..N in the order of the set. `file_name` is that of the image when the set was made, with
    folders; of images without a recorded name the id with the ending of the content, `.jpg`
    without images.

    Args:
        masks: shard set of kind `masks`, or `images` with masks.
        out: `NAME.json`; with `panoptic` the PNG files go to the folder `NAME`.
        data: image set of the masks.
        panoptic: segments with rgb ids (VOC's colour of the class; 0 is background and 255).
        progress: show a progress line.

    Returns:
        Counts of images. If any failed, `out` is not written.

    Raises:
        UserError: not a set of masks, images of others, a name without `.json`, a manifest whose
            categories are not its classes, or another process writes there.
    """
    out = Path(out)
    require_ending(out, ".json", "rle")
    source = _open(masks, data)
    tally, folder = Tally("masks"), out.with_suffix("") if panoptic else None
    describe = _Segments(source, folder) if folder else _Regions(source)
    with (whole_file(out) as temporary, folder_lock(folder) if folder else nullcontext(),
          track(len(source.masks), "export", "masks", disable=not progress) as bar):
        if folder:
            remove_temporaries(folder)
        with open(temporary, "w", encoding="utf-8") as file:
            info = {"description": _NOTE, "masks": source.masks.manifest.digest}
            file.write(f'{{"info": {json.dumps(info)}')
            write_list(file, "categories", source.categories if not panoptic else
                        [{**item, "isthing": 0} for item in source.categories])
            names: list[str] = []
            write_list(file, "annotations", _annotations(source, describe, names, tally, bar))
            write_list(file, "images", _images(source, names))
            file.write("}\n")
        if tally.failures:
            temporary.unlink()
            bar.note(f"{out} was not written: {len(tally.failures)} masks failed")
    return tally


def _open(masks: Path, data: Path | None) -> _Source:
    source = open_masks(masks)
    images, rows = open_images(data, source) if data else (None, [])
    if images is None and source.has("image"):
        images, rows = source, list(source)
    manifests = [item.manifest for item in (images, source) if item is not None]
    recorded = next((manifest.extra["categories"] for manifest in manifests
                     if manifest.extra.get("categories")), None)
    if recorded is None:
        categories = [{"id": k, "name": name, "supercategory": ""}
                      for k, name in enumerate(source.class_names, 1)]
        return _Source(source, images, rows, categories, list(range(1, len(source) + 1)))
    try:
        categories = [{key: item[key] for key in ("id", "name", "supercategory")}
                      for item in recorded]
    except (KeyError, TypeError):
        categories = []
    if [item["name"] for item in categories] != source.class_names:
        raise UserError(f"{(images or source).path}/{MANIFEST}: extra.categories are not the "
                        "classes of the set", fix="make the set again with data_tools.coco")
    return _Source(source, images, rows, categories, _numbers(source.ids))


def _numbers(ids: list[str]) -> list[int]:
    """COCO's own numbers of images, where all names have one and no two the same; else 1..N."""
    found = [_COCO_NAME.fullmatch(name) for name in ids]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(ids) else list(range(1, len(ids) + 1))


class _Regions:
    """Annotations of one mask in the style of instances files."""

    def __init__(self, source: _Source):
        self.source, self.count = source, itertools.count(1)

    def __call__(self, row: int, mask: np.ndarray) -> list[dict[str, Any]]:
        return [{"id": next(self.count), "image_id": self.source.numbers[row],
                 "category_id": self.source.categories[label - 1]["id"], **_measures(rle),
                 "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")}}
                for label, rle in _encoded(mask)]


class _Segments:
    """The annotation of one mask in the panoptic style; writes its PNG file to `folder`."""

    def __init__(self, source: _Source, folder: Path):
        self.source, self.folder = source, folder
        self.colours = voc_palette()
        self.colours[IGNORE] = 0
        self.ids = self.colours.astype(int) @ (1, 256, 65536)

    def __call__(self, row: int, mask: np.ndarray) -> list[dict[str, Any]]:
        name = f"{self.source.masks.ids[row]}.png"
        picture = cv2.imencode(".png", self.colours[mask][..., ::-1])[1].tobytes()
        replace_file(self.folder / name, picture)
        segments = [{"id": int(self.ids[label]), **_measures(rle),
                     "category_id": self.source.categories[label - 1]["id"]}
                    for label, rle in _encoded(mask)]
        return [{"image_id": self.source.numbers[row], "file_name": name,
                 "segments_info": segments}]


def _encoded(mask: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each class of a mask with its run lengths."""
    for label in mask_values(mask):
        if label not in (0, IGNORE):
            yield int(label), run_lengths.encode(np.asfortranarray(mask == label, np.uint8))


def _measures(rle: dict[str, Any]) -> dict[str, Any]:
    return {"area": int(run_lengths.area(rle)), "bbox": run_lengths.toBbox(rle).tolist(),
            "iscrowd": 0}


def _annotations(source: _Source, describe: Callable[[int, np.ndarray], list[dict[str, Any]]],
                 names: list[str], tally: Tally, bar: Tracker) -> Iterator[dict[str, Any]]:
    """The annotations of all masks; notes the names of the images' files, counts."""
    for row, image_id in enumerate(source.masks.ids):
        try:
            names.append(_file_name(source, row))
            yield from describe(row, mask_of(source.masks, row))
            tally.ok()
        except (UserError, OSError) as error:
            tally.fail(image_id, reason(error))
        bar.advance()


def _file_name(source: _Source, row: int) -> str:
    if source.images is None:
        return f"{source.masks.ids[row]}.jpg"
    if recorded := source.images.file_name(source.rows[row]):
        return recorded
    return f"{source.masks.ids[row]}.{ending_of(source.images.blob('image', source.rows[row]))}"


def _images(source: _Source, names: list[str]) -> Iterator[dict[str, Any]]:
    sizes = source.masks.sizes.tolist()
    for row, name in enumerate(names):
        yield {"id": source.numbers[row], "file_name": name,
               "height": sizes[row][0], "width": sizes[row][1]}
