"""The permutohedral lattice pixel by pixel with a dictionary: slow, plain, and independent."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np


def _corners(feature: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """Lattice points around one feature vector with their weights, found from the definition.

    Lattice points are integer vectors of zero sum whose coordinates are congruent modulo d+1.
    """
    d = len(feature)
    basis = np.zeros((d + 1, d))
    for j in range(d):
        basis[:j + 1, j] = 1
        basis[j + 1, j] = -(j + 1)
        basis[:, j] *= math.sqrt(2 / 3) * (d + 1) / math.sqrt((j + 1) * (j + 2))
    point = basis @ feature
    # Nearest point of remainder 0 on each axis, then moved back to zero sum.
    zero = (d + 1) * np.round(point / (d + 1))
    order = np.argsort(-(point - zero), kind="stable")
    surplus = int(round(zero.sum() / (d + 1)))
    if surplus > 0:
        zero[order[-surplus:]] -= d + 1
    elif surplus < 0:
        zero[order[:-surplus]] += d + 1
    rest = point - zero
    order = np.argsort(-rest, kind="stable")
    found = []
    for c in range(d + 1):
        corner = zero + c
        corner[order[d + 1 - c:]] -= d + 1  # the c smallest remainders
        found.append(corner)
    weights = np.linalg.lstsq(np.vstack([np.array(found).T, np.ones(d + 1)]),
                              np.append(point, 1.0), rcond=None)[0]
    return [(tuple(int(x) for x in corner), w) for corner, w in zip(found, weights, strict=True)]


def lattice_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Filter values [K, N] with features [N, d]: splat, blur axis by axis, slice."""
    d = features.shape[1]
    places = [_corners(feature) for feature in features.astype(np.float64)]
    table: dict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(len(values)))
    for pixel, corners in enumerate(places):
        for corner, weight in corners:
            table[corner] = table[corner] + weight * values[:, pixel]
    for axis in range(d + 1):
        step = -np.ones(d + 1, int)
        step[axis] = d
        blurred = {}
        for corner, value in table.items():
            sides = [tuple((np.array(corner) + sign * step).tolist()) for sign in (1, -1)]
            blurred[corner] = value + 0.5 * sum(table[side] for side in sides if side in table)
        table = blurred
    out = [sum(weight * table[corner] for corner, weight in corners) for corners in places]
    return np.stack(out, 1) / (1 + 2.0 ** -d)
