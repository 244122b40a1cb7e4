"""From pixel counts to scores, and what a difference between two points is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from more.evaluation.metrics import Scores, mean_over, scores

DRAWS = 1000


@dataclass(frozen=True)
class PointScores:
    """Figures of one point over the sample.

    Attributes:
        scores: as `more evaluate` gives them for these images: pixels left out do not count.
        kept: share of the true pixels that have a label.
        miou_all: mIoU with pixels left out as missed, over the classes with truth.
        margins: [N, 4, K] int64 per image and class: hit, true and predicted pixels (kept ones),
            and true ones kept or not.
    """

    scores: Scores
    kept: float
    miou_all: float
    margins: np.ndarray

    @property
    def precision(self) -> float:
        """Mean over the classes with truth."""
        return self._mean(self.scores.precision)

    @property
    def recall(self) -> float:
        """Mean over the classes with truth."""
        return self._mean(self.scores.recall)

    def _mean(self, values: np.ndarray) -> float:
        return mean_over(values, ~np.isnan(self.scores.recall))


def score_point(counts: np.ndarray) -> PointScores:
    """Figures of one point.

    Args:
        counts: int64 [N, K, K + 1] as `CountStore.counts` gives.

    Returns:
        Its figures.
    """
    square, total = counts[:, :, :-1], counts.sum(0)
    margins = np.stack([np.diagonal(square, axis1=1, axis2=2), square.sum(2), square.sum(1),
                        counts.sum(2)], 1)
    hit, true, predicted = np.diag(total[:, :-1]), total.sum(1), total[:, :-1].sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        strict = hit / (true + predicted - hit)
    kept = total[:, :-1].sum() / max(total.sum(), 1)
    return PointScores(scores(total[:, :-1], true), float(kept), mean_over(strict, true > 0),
                       margins)


@dataclass(frozen=True)
class Difference:
    """How much better one point is than another, and how sure that is.

    Attributes:
        miou: difference of the mIoU on the whole sample.
        low, high: 95 % interval over bootstrap draws of the images; None for one image.
        unseen: mean difference, on the images left out of a draw, of the point that is best on
            the draw: what a choice on such a sample is worth on other images.
        unseen_positive: share of the draws in which that difference is above zero.
        draws: number of draws.
    """

    miou: float
    low: float | None
    high: float | None
    unseen: float | None
    unseen_positive: float | None
    draws: int

    @property
    def certain(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low is not None and self.low > 0


def compare(points: Sequence[PointScores], best: int, reference: int, eligible: Sequence[int],
            seed: int, draws: int = DRAWS) -> Difference:
    """Bootstrap over images of the best point against the reference.

    A draw takes N of the N images with repetition. Percentile interval (Efron 1979); the images
    that a draw misses, about 37 %, serve to score what the draw would have chosen.

    Args:
        points: figures of all points over the same images.
        best, reference: their numbers.
        eligible: points that a draw may choose.
        seed: of the draws.
        draws: their number.

    Returns:
        The difference with its interval.
    """
    miou = points[best].scores.miou - points[reference].scores.miou
    images = len(points[best].margins)
    if images < 2:
        return Difference(miou, None, None, None, None, 0)
    picks = np.random.default_rng(seed).integers(0, images, (draws, images))
    weights = np.stack([np.bincount(row, minlength=images) for row in picks]).astype(np.float64)
    unseen = (weights == 0).astype(np.float64)
    gain = _drawn(points[best], weights) - _drawn(points[reference], weights)
    inside = np.stack([_drawn(points[number], weights) for number in eligible])
    outside = np.stack([_drawn(points[number], unseen) for number in eligible])
    chosen = np.where(np.isnan(inside), -1, inside).argmax(0)
    honest = outside[chosen, np.arange(draws)] - _drawn(points[reference], unseen)
    gain, honest = gain[np.isfinite(gain)], honest[np.isfinite(honest)]
    low, high = np.percentile(gain, [2.5, 97.5]) if len(gain) else (None, None)
    return Difference(miou, _number(low), _number(high),
                      float(honest.mean()) if len(honest) else None,
                      float((honest > 0).mean()) if len(honest) else None, draws)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _drawn(point: PointScores, weights: np.ndarray) -> np.ndarray:
    """mIoU of a point with every image counted `weights` [B, N] times, [B]; NaN without truth."""
    images, _, classes = point.margins.shape
    sums = weights @ point.margins.reshape(images, -1).astype(np.float64)
    hit, true, predicted, whole = sums.reshape(len(weights), 4, classes).transpose(1, 0, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(hit > 0, hit / (true + predicted - hit), 0.0)
        return iou.sum(1) / (whole > 0).sum(1)
