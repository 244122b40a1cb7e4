"""Scores of a set of seeds or masks against the true masks of an image set."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.errors import UserError, nearest
from more.evaluation.metrics import confusion_matrix, mean_over, scores
from more.evaluation.result import Result
from more.evaluation.routes import describe_route, seed_facts
from more.progress import track
from more.pseudo.seeds import SeedItem, decode_seed, seed_label, seed_probabilities

DEFAULT_THRESHOLD = 0.5
SWEEP = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))
CHUNK = 32


def evaluate(path: Path, data: Path, threshold: float | None = None,
             classes: Sequence[str] | None = None, sweep: bool = False,
             workers: int | None = None, name: str | None = None,
             progress: bool = True) -> Result:
    """Compare a set of seeds or masks with the true masks of an image set.

    Args:
        path: shard set of kind `seeds` or `masks`.
        data: shard set of kind `images` that holds the true masks.
        threshold: background threshold for seeds; default: the set's own, else 0.5. Seeds with
            an explicit background (the decoder's) are labelled by argmax and have none.
        classes: names for an additional mean over these classes only (`background` counts).
        sweep: also the mIoU at thresholds 0.10, 0.15, …, 0.90 (seeds without background).
        workers: threads; default: as many as cores, at most 8. The figures do not depend on it.
        name: what to call the set; default: its folder, as `seeds/lam`.
        progress: show a progress line.

    Raises:
        UserError: sets that do not belong together, an image without true mask, an unknown
            class, or a mask with values outside the classes; always with the name of the file
            or image.
    """
    source, truth = _open_pair(Path(path), Path(data))
    class_names = ["background", *truth.class_names]
    subset = _check_subset(classes, class_names)
    job = _Job(source, truth, _rows(source, truth), len(class_names),
               _threshold(source, threshold), sweep)
    parts = _run(job, workers or min(8, os.cpu_count() or 1), progress)
    counts = sum(part.counts for part in parts)
    used = job.threshold if any(part.thresholded for part in parts) else None
    swept = sum(part.swept for part in parts) if sweep and used is not None else None
    left_out = sum(part.left_out for part in parts)
    ids, held = list(truth.ids), set(source.ids)
    return Result(
        name=name or _set_name(Path(path)), kind=source.kind, data=Path(data).name,
        route=describe_route(source.manifest.provenance, used), threshold=used,
        class_names=class_names, scores=scores(counts), images=len(source),
        unlabelled=left_out / max(left_out + int(counts.sum()), 1),
        missing=[i for i in ids if i not in held],
        per_image={key: value for part in parts for key, value in part.per_image.items()},
        subset=subset, sweep={} if swept is None else _sweep_scores(swept))


@dataclass(frozen=True)
class _Job:
    """The two open sets, the row of each item in the truth, and how to label seeds."""

    source: ShardSet
    truth: ShardSet
    rows: list[int]
    num_classes: int
    threshold: float
    sweep: bool


@dataclass
class _Part:
    """Sums over some of the images."""

    counts: np.ndarray
    swept: np.ndarray
    left_out: int = 0
    thresholded: bool = False
    per_image: dict[str, float] = field(default_factory=dict)


def _run(job: _Job, workers: int, progress: bool) -> list[_Part]:
    """Every image once, in chunks over threads (decoding and resizing release the GIL)."""
    starts = range(0, len(job.source), CHUNK)
    with (track(len(job.source), "evaluate", disable=not progress) as bar,
          ThreadPoolExecutor(workers) as pool):
        parts = []
        for part in pool.map(lambda start: _count(job, start), starts):
            parts.append(part)
            bar.advance(len(part.per_image))
    return parts


def _count(job: _Job, start: int) -> _Part:
    """Confusion of the items `start … start + CHUNK`."""
    k = job.num_classes
    part = _Part(np.zeros((k, k), np.int64), np.zeros((k, k, len(SWEEP) + 1), np.int64))
    for item in range(start, min(start + CHUNK, len(job.source))):
        name = job.source.ids[item]
        truth = job.truth.mask(job.rows[item])
        label = _label(job, item, truth, part)
        try:
            counts = confusion_matrix(truth, label, k, pseudo=True).numpy()
        except ValueError as error:
            raise UserError(f"{job.source.path}: image {name}: {error}",
                            fix="check that masks and data set list the same classes and come "
                                "from the same images") from error
        part.counts += counts
        part.left_out += int(((truth < k) & (label == IGNORE)).sum())
        part.per_image[name] = _mean_iou(counts)
    return part


def image_iou(truth: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    """Mean IoU of one image over the classes that its truth or its label contains.

    Args:
        truth, label: `[H, W]`; pixels with 255 in either are left out.
        num_classes: background included.
    """
    return _mean_iou(confusion_matrix(truth, label, num_classes, pseudo=True).numpy())


def _mean_iou(counts: np.ndarray) -> float:
    iou = scores(counts).iou
    return mean_over(iou, ~np.isnan(iou))


def _label(job: _Job, item: int, truth: np.ndarray, part: _Part) -> np.ndarray:
    """The predicted label map of one item, at the size of its truth."""
    if job.source.kind == "masks":
        mask = job.source.mask(item)
        if mask is None:
            raise UserError(f"{job.source.path}: image {job.source.ids[item]} has no mask",
                            fix="run `more refine` again")
        return mask
    seed = read_seed(job.source, item)
    # Without an explicit background (key 0) the threshold decides, also where no class is.
    if 0 not in seed.keys:
        part.thresholded = True
        if job.sweep:
            part.swept += _sweep_counts(seed, truth, job.num_classes)
    return seed_label(seed, truth.shape, job.threshold)


def read_seed(source: ShardSet, row: int) -> SeedItem:
    """The seed of one row; UserError naming the image when it holds none."""
    try:
        return decode_seed(source.blob("seed", row))
    except ValueError as error:
        raise UserError(f"{source.path}: image {source.ids[row]}: {error}",
                        fix="make the seeds again with `more localize`") from error


def _sweep_counts(seed: SeedItem, truth: np.ndarray, k: int) -> np.ndarray:
    """Counts `[true, winning class, number of thresholds below its value]` of one image."""
    keys, maps = seed_probabilities(seed, truth.shape)
    if len(keys) == 1:
        winner, value = np.zeros(truth.shape, np.int64), np.zeros(truth.shape, np.float32)
    else:
        winner = np.asarray(keys, np.int64)[1:][maps[1:].argmax(0)]
        value = maps[1:].max(0)
    # A pixel is its class at threshold t when value > t, exactly as in seed_label.
    passed = np.searchsorted(np.asarray(SWEEP, value.dtype), value, side="left")
    index = (truth.astype(np.int64) * k + winner) * (len(SWEEP) + 1) + passed
    shape = (k, k, len(SWEEP) + 1)
    return np.bincount(index[truth < k], minlength=math.prod(shape)).reshape(shape)


def _sweep_scores(counts: np.ndarray) -> dict[float, float]:
    """mIoU at every threshold from the counts of `_sweep_counts`."""
    out = {}
    for step, threshold in enumerate(SWEEP):
        matrix = counts[:, :, step + 1:].sum(-1)
        matrix[:, 0] += counts[:, :, :step + 1].sum((1, 2))
        out[threshold] = scores(matrix).miou
    return out


def _open_pair(path: Path, data: Path) -> tuple[ShardSet, ShardSet]:
    """Both sets, checked to be of the right kinds and over the same classes."""
    source, truth = ShardSet(path, check="full"), ShardSet(data, kind="images", check="full")
    if source.kind not in ("seeds", "masks"):
        raise UserError(f"{path} holds {source.kind}, not seeds or masks",
                        fix="give the output of `more localize` or `more refine`")
    if list(source.class_names) != list(truth.class_names):
        raise UserError(
            f"{path} has {len(source.class_names)} classes ({', '.join(source.class_names[:4])}, "
            f"…), {data} has {len(truth.class_names)} ({', '.join(truth.class_names[:4])}, …)",
            fix="give the image set that the seeds or masks were made from")
    return source, truth


def _rows(source: ShardSet, truth: ShardSet) -> list[int]:
    """The row in the truth of every item; every item must be there and have a true mask."""
    where = {name: row for row, name in enumerate(truth.ids)}
    strangers = [name for name in source.ids if name not in where]
    if strangers:
        raise UserError(f"{truth.path} does not hold {len(strangers)} of the {len(source)} images "
                        f"of {source.path}: {_some(strangers)}",
                        fix="give the image set that the seeds or masks were made from")
    if not len(source):
        raise UserError(f"{source.path} holds no image", fix="make it again from a filled set")
    rows = [where[name] for name in source.ids]
    bare = [truth.ids[row] for row in rows if not truth.blob("mask", row)]
    if bare:
        raise UserError(f"{truth.path}: {len(bare)} images have no true mask: {_some(bare)}",
                        fix="build the image set with its masks to evaluate on it")
    return rows


def _threshold(source: ShardSet, threshold: float | None) -> float:
    if threshold is None:
        recorded = seed_facts(source.manifest.provenance).get("threshold")
        return DEFAULT_THRESHOLD if recorded is None else float(recorded)
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold} is outside 0..1",
                        fix="seeds are normalised maps: choose a value such as 0.5")
    return float(threshold)


def _check_subset(classes: Sequence[str] | None, known: list[str]) -> list[str] | None:
    """The names asked for, in pixel-value order; UserError with near names for unknown ones."""
    if classes is None:
        return None
    for name in classes:
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"class {name!r} is not in the set",
                            fix=f"did you mean {near}?" if near else f"known: {', '.join(known)}")
    return [name for name in known if name in set(classes)]


def _set_name(path: Path) -> str:
    path = path.resolve()
    grouped = path.parent.name in ("seeds", "masks")
    return f"{path.parent.name}/{path.name}" if grouped else path.name


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
