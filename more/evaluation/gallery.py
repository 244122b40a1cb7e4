"""The report's pictures of single images: image, CAM, LAM, mask after CRF, truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from more.data.seeds import seed_label, seed_probabilities
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.count import read_seed
from more.evaluation.evaluate import evaluate
from more.evaluation.metrics import image_iou, joint_labels, joint_matrix, true_pixels
from more.evaluation.pictures import data_uri, heat_overlay, thumbnail
from more.evaluation.sets import seed_threshold
from more.palette import colour_of, mask_overlay

MASKS = ("lam", "fused", "cam", "decoder")


@dataclass
class Gallery:
    """Cards for the page, the colours that occur in them, and what could not be shown."""

    cards: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ranked_by: str = ""


@dataclass(frozen=True)
class _Sets:
    """Open sets of one run; None where a run does not have one."""

    data: ShardSet
    cam: ShardSet | None
    lam: ShardSet | None
    masks: ShardSet | None

    def of_images(self) -> list[ShardSet]:
        """What the run made, the sets that decide which images can be shown first."""
        return [item for item in (self.masks, self.lam, self.cam) if item is not None]


def make_gallery(run: Path, data: Path | None, count: int) -> Gallery:
    """Cards of `count` images: half the worst by IoU of the refined masks, a quarter around the
    median, a quarter the best; in that order.

    Args:
        run: run folder with `seeds/cam`, `seeds/lam`, `masks/*` (any may be missing).
        data: the image set; None: looked for in the run's records.
        count: number of images.

    Raises:
        UserError: `data` was given and does not hold the run's images.
    """
    gallery = Gallery()
    made = {name: _open(run / name, gallery) for name in ("seeds/cam", "seeds/lam")}
    masks, found = _open_masks(run, gallery)
    present = [item for item in (masks, *made.values()) if item is not None]
    if not present:
        return gallery
    folder = data or find_data(run, present)
    if folder is None:
        gallery.notes.append("The image set was not found: give its folder with --data to see "
                             "pictures.")
        return gallery
    sets = _Sets(ShardSet(folder, kind="images"), made["seeds/cam"], made["seeds/lam"], masks)
    if not _shared(sets):
        raise UserError(f"{folder} holds none of the images of {present[0].path}",
                        fix="give the image set that the seeds were made from")
    chosen = _choose(run / found if found else None, sets, count, gallery)
    labels: set[int] = set()
    gallery.cards = [_card(sets, name, group, iou, labels) for name, group, iou in chosen]
    gallery.legend = _legend(sets.data, labels)
    return gallery


def find_data(run: Path, made: list[ShardSet]) -> Path | None:
    """The image set named anywhere in the run's JSON files or in the sets' provenance.

    Taken is the first existing folder that is a shard set of images with the sets' images.
    """
    records: list[Any] = [item.manifest.extra for item in made]
    records += [item.manifest.provenance for item in made]
    for file in sorted(run.glob("*.json")):
        try:
            records.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError:
            continue
    for text in _texts(records):
        try:
            if (Path(text) / "manifest.json").is_file():
                if set(ShardSet(text, kind="images").ids) & set(made[0].ids):
                    return Path(text)
        except (UserError, OSError, ValueError):
            continue
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every non-empty string inside nested dicts and lists."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _open(path: Path, gallery: Gallery) -> ShardSet | None:
    """A set of the run; a missing or damaged one becomes a note."""
    if not path.is_dir():
        gallery.notes.append(f"{path.parent.name}/{path.name} is not in this run.")
        return None
    try:
        return ShardSet(path)
    except UserError as error:
        gallery.notes.append(f"{path.parent.name}/{path.name} cannot be read: {error.message}.")
        return None


def _open_masks(run: Path, gallery: Gallery) -> tuple[ShardSet | None, str]:
    """The refined masks to show: those from LAM where there are several."""
    there = [name for name in MASKS if (run / "masks" / name).is_dir()]
    if not there:
        gallery.notes.append("Refined masks (masks/lam) are not in this run.")
        return None, ""
    return _open(run / "masks" / there[0], gallery), f"masks/{there[0]}"


def _shared(sets: _Sets) -> list[str]:
    """Ids that the image set and the run's first set have in common."""
    held = set(sets.data.ids)
    return [name for name in sets.of_images()[0].ids if name in held]


def _choose(masks: Path | None, sets: _Sets, count: int, gallery: Gallery
            ) -> list[tuple[str, str, float | None]]:
    """`(id, group, IoU)` of the images to show."""
    ids = _shared(sets)
    source = sets.of_images()[0]
    try:
        scored = evaluate(source.path, sets.data.path, boundary=0, calibration=False,
                          progress=False)
    except UserError as error:
        gallery.notes.append(f"Images are not ranked by IoU: {error.message}.")
        step = max(len(ids) // count, 1)
        return [(name, "sample", None) for name in ids[::step][:count]]
    gallery.ranked_by = f"{scored.name}: {scored.route}"
    order = sorted((name for name in ids if not np.isnan(scored.per_image[name])),
                   key=scored.per_image.__getitem__)
    return [(name, group, scored.per_image[name])
            for name, group in pick(order, count)]


def pick(order: list[str], count: int) -> list[tuple[str, str]]:
    """From ids in ascending IoU: the worst half, a quarter median, a quarter best of `count`."""
    if len(order) <= count:
        return [(name, "all") for name in order]
    best, median = count // 4, count // 4
    worst = count - best - median
    rest = order[worst:len(order) - best]
    start = (len(rest) - median) // 2
    return ([(name, "worst") for name in order[:worst]]
            + [(name, "median") for name in rest[start:start + median]]
            + [(name, "best") for name in order[len(order) - best:]])


def _card(sets: _Sets, name: str, group: str, iou: float | None, labels: set[int]
          ) -> dict[str, Any]:
    """Tiles and words of one image; `labels` collects the pixel values that are drawn."""
    row = sets.data.index_of(name)
    image, truth = sets.data.image(row), sets.data.mask(row)
    tiles = [{"caption": "image", "src": data_uri(thumbnail(image))}]
    for caption, source in (("CAM", sets.cam), ("LAM", sets.lam)):
        tiles.append(_seed_tile(caption, source, name, image, truth))
    mask = None
    if sets.masks is not None and name in sets.masks.ids:
        mask = sets.masks.mask(sets.masks.index_of(name))
    tiles.append(label_tile("mask after CRF", mask, image, truth, sets.data.num_classes, labels))
    tiles.append(label_tile("truth", truth, image, None, sets.data.num_classes, labels))
    tags = [{"name": sets.data.class_names[k], "colour": colour_of(k + 1)}
            for k in np.flatnonzero(sets.data.tags[row])]
    return {"id": name, "group": group, "iou": iou, "tags": tags, "tiles": tiles}


def _seed_tile(caption: str, source: ShardSet | None, name: str, image: np.ndarray,
               truth: np.ndarray | None) -> dict[str, Any]:
    """The strongest present class's map at each pixel, outlined at the set's threshold."""
    if source is None or name not in source.ids:
        return {"caption": caption, "src": None}
    seed = read_seed(source, source.index_of(name))
    label = seed_label(seed, image.shape[:2], seed_threshold(source))
    maps = seed_probabilities(seed, image.shape[:2])[1][1:]
    value = maps.max(0) if len(maps) else np.zeros(label.shape, np.float32)
    tile = heat_overlay(thumbnail(image), thumbnail(value), thumbnail(label, nearest=True))
    return {"caption": caption, "src": data_uri(tile),
            "iou": _iou(truth, label, source.num_classes)}


def label_tile(caption: str, label: np.ndarray | None, image: np.ndarray,
               truth: np.ndarray | None, classes: int, labels: set[int]) -> dict[str, Any]:
    """A tile of a label map over its image, with its IoU; `labels` collects what is drawn."""
    if label is None or label.shape != image.shape[:2]:
        return {"caption": caption, "src": None}
    labels.update(int(value) for value in np.unique(label))
    tile = mask_overlay(thumbnail(image), thumbnail(label, nearest=True))
    return {"caption": caption, "src": data_uri(tile), "iou": _iou(truth, label, classes)}


def _iou(truth: np.ndarray | None, label: np.ndarray, classes: int) -> float | None:
    if truth is None or truth.shape != label.shape:
        return None
    joint = joint_labels(truth, label, classes + 1)[1]
    return image_iou(joint_matrix(joint, classes + 1), true_pixels(truth, classes + 1))


def _legend(data: ShardSet, labels: set[int]) -> list[dict[str, str]]:
    names = {0: "background (image dimmed)", IGNORE: "uncertain or ignored (255)",
             **{k + 1: name for k, name in enumerate(data.class_names)}}
    return [{"name": names.get(label, str(label)), "colour": colour_of(label)}
            for label in sorted(labels)]
