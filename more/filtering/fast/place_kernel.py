"""The place kernel of the dense CRF: a Gaussian of the pixels' distance, as two convolutions.

It is cut at five deviations and normalised as D^-½ K D^-½.

Letters: C channels (the labels less label 0), H rows, W pixels of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from more.filtering.fast.jit import jit

F = np.float32
CUT = 5  # deviations of the place kernel


class Place(NamedTuple):
    """The place kernel: weight · D^-½ K D^-½ as a convolution in x and one in y.

    Attributes:
        taps: float32 [radius + 1], by distance.
        across, down: float32 [W] and [H], the two factors of D^-½.
        weight: of the whole.
    """

    taps: np.ndarray
    across: np.ndarray
    down: np.ndarray
    weight: np.float32


def place_kernel(height: int, width: int, sigma: float, weight: float) -> Place:
    """The place kernel of an image size; sigma in pixels."""
    radius = min(int(np.ceil(CUT * sigma)), max(height, width) - 1)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    both = np.concatenate([taps[:0:-1], taps])

    def factor(length: int) -> np.ndarray:
        return (np.convolve(np.ones(length), both)[radius:radius + length] ** -0.5).astype(F)
    return Place(taps.astype(F), factor(width), factor(height), F(weight))


@jit
def place_row(q, y, place, work):
    """The place kernel's part of the energies of row y, into `work.energy`."""
    height, channels, width = q.shape
    taps, radius, total = place.taps, place.taps.shape[0] - 1, work.total
    for c in range(channels):
        for x in range(width):
            total[x] = taps[0] * place.down[y] * q[y, c, x]
        for t in range(1, radius + 1):
            above, below = max(0, y - t), min(height - 1, y + t)
            up = taps[t] * place.down[above] if y - t >= 0 else F(0)
            down = taps[t] * place.down[below] if y + t < height else F(0)
            add_two(total, up, q[above, c], down, q[below, c])
        middle = work.padded[radius:radius + width]
        for x in range(width):
            middle[x] = total[x] * place.across[x]
        convolve(work.energy[c], work.padded, taps)
        factor = place.weight * place.down[y]
        for x in range(width):
            work.energy[c, x] *= factor * place.across[x]


@jit
def add_two(total, a, first, b, second):
    """total += a · first + b · second."""
    for x in range(total.shape[0]):
        total[x] += a * first[x] + b * second[x]


@jit
def convolve(out, padded, taps):
    """out[x] = Σ_t taps[|t|] · padded[radius + x + t]."""
    width, radius = out.shape[0], taps.shape[0] - 1
    middle, tap = padded[radius:radius + width], taps[0]
    for x in range(width):
        out[x] = tap * middle[x]
    for t in range(1, radius + 1):
        left, right = padded[radius - t:radius - t + width], padded[radius + t:radius + t + width]
        tap = taps[t]
        for x in range(width):
            out[x] += tap * (left[x] + right[x])
