"""The background threshold of seeds: scores at many values from one pass over the pixels."""

from __future__ import annotations

import math

import numpy as np

from more.data.seeds import SeedItem, seed_probabilities
from more.evaluation.metrics import scores

SWEEP = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))


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
