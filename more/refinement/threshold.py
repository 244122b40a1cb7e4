"""A threshold for a set of seeds without looking at any mask: Otsu's method on their values.

The histogram of the strongest map of every pixel has two heaps, background and objects. Taken is
the value that leaves the least variance inside the two (N. Otsu, "A Threshold Selection Method from
Gray-Level Histograms", 1979).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from more.data.seeds import decode_seed
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.progress import track
from more.refinement.image import Refinement

BINS = 100


def with_threshold(how: Refinement, seeds: ShardSet, progress: bool = True) -> Refinement:
    """How to refine, with "auto" replaced by the threshold of these seeds.

    Args:
        how: settings.
        seeds: the set.
        progress: show a progress line.

    Returns:
        The settings; the same ones where a number was given.

    Raises:
        UserError: seeds with a background of their own, or without any class.
    """
    if how.threshold != "auto":
        return how
    counts = strongest_values(seeds, progress)
    if not counts.any():
        raise UserError(f"{seeds.path}: no seed has a class to choose a threshold by",
                        "give --threshold as a number")
    return replace(how, threshold=otsu(counts), chosen="otsu")


def strongest_values(seeds: ShardSet, progress: bool = True) -> np.ndarray:
    """How many cells of all seeds have their strongest map in each of 100 bins of 0..1.

    Seeds that cannot be read are left out here; refining them reports why.

    Args:
        seeds: the set.
        progress: show a progress line.

    Returns:
        int64 [100].

    Raises:
        UserError: seeds with a background of their own: there is nothing to choose.
    """
    counts = np.zeros(BINS, np.int64)
    with track(len(seeds), "threshold", disable=not progress) as bar:
        for row in seeds:
            bar.advance()
            try:
                item = decode_seed(seeds.blob("seed", row))
            except (UserError, ValueError):
                continue
            if len(item.keys) and item.keys[0] == 0:
                raise UserError(f"{seeds.path}: threshold auto for seeds with a background of "
                                "their own", "leave the threshold out")
            if len(item.keys):
                top = item.maps.max(0).astype(np.float32)
                place = (top * BINS).astype(np.int64).clip(0, BINS - 1)
                counts += np.bincount(place.ravel(), minlength=BINS)
    return counts


def otsu(counts: np.ndarray) -> float:
    """The edge between two bins of 0..1 that separates a histogram best.

    Args:
        counts: [n], not all 0.

    Returns:
        A multiple of 1/n above 0 and below 1.
    """
    share = counts / counts.sum()
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    below, mean = np.cumsum(share)[:-1], np.cumsum(share * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * below - mean[:-1]) ** 2 / (below * (1 - below))
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = np.flatnonzero(between >= between.max() - 1e-12)  # all of an empty gap between heaps
    return float(best[len(best) // 2] + 1) / len(counts)
