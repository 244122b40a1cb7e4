"""How far the confidence of a mask can be trusted, and what leaving out doubtful pixels gains.

A set of masks stores the confidence of each label as a level, `round(255 Q)`. Well calibrated is
a set where of the pixels with confidence 0.8 eighty in a hundred are right. All figures come from
counts that are exact and sum over images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from more.evaluation.metrics import scores

BINS = 15  # 255 / 15 = 17 levels each
THRESHOLDS = (*(round(0.5 + 0.05 * step, 2) for step in range(10)), 0.99)
# Number of thresholds that a level reaches. Level l stands for l / 255, so a pixel may lie on the
# other side of a threshold than in `more refine --ignore-below` by half a level (0.002).
_REACHED = np.searchsorted(THRESHOLDS, np.arange(256) / 255, side="right").astype(np.uint8)


@dataclass(frozen=True)
class Bin:
    """Pixels whose confidence lies between two values.

    Attributes:
        low: smallest confidence.
        high: largest confidence.
        pixels: how many there are.
        confidence: their mean confidence; None without pixels.
        accuracy: share of right ones; None without pixels.
    """

    low: float
    high: float
    pixels: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Step:
    """What is left when pixels of less confidence than `threshold` are left out.

    Attributes:
        threshold: least confidence of a pixel that is kept.
        kept: share of the labelled pixels.
        accuracy: share of right pixels among those kept.
        miou: over the classes that still have truth among the pixels kept.
        classes: number of these classes.
    """

    threshold: float
    kept: float
    accuracy: float
    miou: float
    classes: int


@dataclass(frozen=True)
class Calibration:
    """Reliability of the confidence over labelled pixels with truth.

    Attributes:
        pixels: how many were counted.
        confidence: their mean confidence.
        accuracy: share of right ones.
        error: expected calibration error: the gap between confidence and accuracy of a bin,
            averaged over the bins by their pixels.
        bins: equal bins of the confidence.
        curve: what is left at each threshold.
    """

    pixels: int
    confidence: float
    accuracy: float
    error: float
    bins: list[Bin]
    curve: list[Step]

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and numbers."""
        return asdict(self)

    def note(self) -> str:
        """One line for the table."""
        text = (f"confidence: mean {100 * self.confidence:.1f} %, accuracy "
                f"{100 * self.accuracy:.1f} %, expected calibration error "
                f"{100 * self.error:.1f} %")
        step = next(step for step in self.curve if step.threshold == 0.9)
        if not step.kept:
            return text
        return (f"{text}; at 0.90 and above: {100 * step.kept:.1f} % of the pixels with mIoU "
                f"{100 * step.miou:.2f}")


def calibration_counts(joint: np.ndarray, correct: np.ndarray, level: np.ndarray,
                       num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the pixels of one image.

    Args:
        joint: `[N]` true class times K plus predicted class.
        correct: bool `[N]`, whether both are the same.
        level: uint8 `[N]`, stored confidence.
        num_classes: `K`, background included.

    Returns:
        int64 `[256, 2]`, pixels by level and correctness; int64 `[K, K, T + 1]`, the confusion of
        the pixels that reach exactly the first 0, 1, … T of `THRESHOLDS`.
    """
    levels = np.bincount(level.astype(np.uint16) * 2 + correct, minlength=512).reshape(256, 2)
    steps, size = len(THRESHOLDS) + 1, num_classes * num_classes
    # Thresholds outermost: neighbouring pixels then hit the same few kilobytes.
    reached = np.bincount(_REACHED[level] * np.int32(size) + joint, minlength=steps * size)
    return levels, reached.reshape(steps, num_classes, num_classes).transpose(1, 2, 0)


def calibrate(levels: np.ndarray, reached: np.ndarray) -> Calibration | None:
    """Figures from sums of `calibration_counts`; None when no pixel was counted."""
    total = int(levels.sum())
    if not total:
        return None
    bins = _bins(levels)
    error = sum(item.pixels * abs(item.confidence - item.accuracy) for item in bins
                if item.pixels) / total
    weights = np.arange(256) / 255
    return Calibration(total, float(weights @ levels.sum(1) / total),
                       float(levels[:, 1].sum() / total), error, bins, _curve(reached, total))


def _bins(levels: np.ndarray) -> list[Bin]:
    """Equal bins of the confidence; 1.0 belongs to the last one."""
    number = np.minimum(np.arange(256) * BINS // 255, BINS - 1)
    out = []
    for place in range(BINS):
        chosen = levels[number == place]
        pixels = int(chosen.sum())
        share = np.flatnonzero(number == place) / 255
        out.append(Bin(place / BINS, (place + 1) / BINS, pixels,
                       float(share @ chosen.sum(1) / pixels) if pixels else None,
                       float(chosen[:, 1].sum() / pixels) if pixels else None))
    return out


def _curve(reached: np.ndarray, total: int) -> list[Step]:
    steps = []
    for place, threshold in enumerate(THRESHOLDS):
        figures = scores(reached[:, :, place + 1:].sum(-1))
        kept = int(reached[:, :, place + 1:].sum())
        steps.append(Step(threshold, kept / total, figures.pixel_accuracy, figures.miou,
                          int((~np.isnan(figures.recall)).sum())))
    return steps
