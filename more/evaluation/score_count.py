"""Counts over a piece of a shard: what the threads of `more evaluate` run. Imports no torch.

Counts are integers and sum exactly, so the figures depend neither on the pieces nor on the
threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from more.data.seeds import SeedItem, decode_seed, seed_label, seed_probabilities
from more.data.shards.codec import decode_mask
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.boundary import boundary_counts
from more.evaluation.calibration import calibration_counts
from more.evaluation.metrics import image_iou, joint_labels, joint_matrix, scores, true_pixels
from more.evaluation.score_sets import NO_TRUTH, Truth

PIECE = 64  # images
SWEEP = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))  # thresholds


@dataclass(frozen=True)
class Job:
    """What to count.

    Attributes:
        num_classes: background included.
        threshold: background threshold of seeds.
        sweep: count thresholds of seeds, too.
        boundary: width of the boundary band over the image's diagonal; 0 leaves it out.
        calibration: count the confidence, where masks have one.
    """

    num_classes: int
    threshold: float
    sweep: bool
    boundary: float
    calibration: bool


Rows = list[tuple[int, int]]  # of some images: row in the source, row in the truth


@dataclass
class Counts:
    """Sums over images.

    Attributes:
        sums: arrays by name, int64: `matrix` [K, K] of the pixels with a label; `truth` [K],
            pixels of each class with or without one; and where asked for and possible `boundary`,
            `swept`, `levels`, `reached`.
        per_image: mean IoU by id.
        thresholded: some label was made with the background threshold.
    """

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    per_image: dict[str, float] = field(default_factory=dict)
    thresholded: bool = False

    def add(self, **arrays: np.ndarray) -> None:
        """Add to the sums of these names."""
        for name, value in arrays.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = np.array(value, np.int64)

    def merge(self, other: Counts) -> None:
        """Add the counts of other images."""
        self.add(**other.sums)
        self.per_image |= other.per_image
        self.thresholded |= other.thresholded


def pieces(source: ShardSet, pairs: Iterable[tuple[int, int]]) -> list[Rows]:
    """The items in runs of at most `PIECE` images that lie in one shard of the source."""
    runs: list[Rows] = []
    last = None
    for pair in pairs:
        shard = source.locate(pair[0])[0]
        if shard != last or len(runs[-1]) == PIECE:
            runs.append([])
        runs[-1].append(pair)
        last = shard
    return runs


def count_piece(job: Job, source: ShardSet, truth: Truth, rows: Rows) -> Counts:
    """Counts of some images.

    Raises:
        UserError: an image without mask, seed or true mask, or one that does not fit the truth;
            with the name of the set and the image.
    """
    counts = Counts()
    for item, row in rows:
        true = truth.mask(row)
        if true is None:
            raise UserError(f"{truth.path}: image {truth.ids[row]} has no true mask", NO_TRUTH)
        try:
            _count_image(job, source, item, true, counts)
        except ValueError as error:
            raise UserError(f"{source.path}: image {source.ids[item]}: {error}",
                            fix="check that masks and data set list the same classes and come "
                                "from the same images") from error
    return counts


def _count_image(job: Job, source: ShardSet, item: int, true: np.ndarray,
                 counts: Counts) -> None:
    k = job.num_classes
    label = _label(job, source, item, true, counts)
    counted, joint = joint_labels(true, label, k)
    matrix = joint_matrix(joint, k)
    pixels = true_pixels(true, k)
    counts.add(matrix=matrix, truth=pixels)
    counts.per_image[source.ids[item]] = image_iou(matrix, pixels)
    if job.boundary:
        counts.add(boundary=boundary_counts(true, label, ~counted, k, job.boundary))
    level = _confidence(source, item, label) if job.calibration else None
    if level is not None:
        levels, reached = calibration_counts(joint, (true == label)[counted], level[counted], k)
        counts.add(levels=levels, reached=reached)


def _label(job: Job, source: ShardSet, item: int, truth: np.ndarray,
           counts: Counts) -> np.ndarray:
    """The predicted label map of one item, at the size of its truth."""
    if source.kind == "masks":
        mask = source.mask(item)
        if mask is None:
            raise UserError(f"{source.path}: image {source.ids[item]} has no mask",
                            fix="run `more refine` again")
        return mask
    seed = read_seed(source, item)
    # Without an explicit background (key 0) the threshold decides, also where no class is.
    if 0 not in seed.keys:
        counts.thresholded = True
        if job.sweep:
            counts.add(swept=sweep_counts(seed, truth, job.num_classes))
    return seed_label(seed, truth.shape, job.threshold)


def _confidence(source: ShardSet, item: int, label: np.ndarray) -> np.ndarray | None:
    """Stored confidence of a mask, uint8 `[H, W]`; None for seeds and masks without one."""
    data = source.blob("confidence", item)
    if not data:
        return None
    level = decode_mask(data, f"{source.path}: confidence of image {source.ids[item]}")
    if level.shape != label.shape:
        raise ValueError(f"mask has shape {label.shape}, its confidence {level.shape}")
    return level


def read_seed(source: ShardSet, row: int) -> SeedItem:
    """The seed of one row; UserError naming the image when it holds none."""
    try:
        return decode_seed(source.blob("seed", row))
    except ValueError as error:
        raise UserError(f"{source.path}: image {source.ids[row]}: {error}",
                        fix="make the seeds again with `more localize`") from error


def sweep_counts(seed: SeedItem, truth: np.ndarray, k: int) -> np.ndarray:
    """Counts `[true, winning class, number of thresholds below its value]` of one image.

    Args:
        seed: without an explicit background.
        truth: uint8 `[H, W]`; values of `k` and above are left out.
        k: number of classes, background included.
    """
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


def sweep_scores(counts: np.ndarray) -> dict[float, float]:
    """mIoU at every threshold from sums of `sweep_counts`."""
    out = {}
    for step, threshold in enumerate(SWEEP):
        matrix = counts[:, :, step + 1:].sum(-1)
        matrix[:, 0] += counts[:, :, :step + 1].sum((1, 2))
        out[threshold] = scores(matrix).miou
    return out
