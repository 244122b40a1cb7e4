"""Mean field of the dense CRF on the fast lattice: all of an update of a row in one pass.

Krähenbühl and Koltun (2011), with Potts compatibilities and kernels normalised as D^-½ K D^-½
(method §4.12). For K labels only C = K - 1 channels are kept, the labels less label 0:

- What is filtered is Q_k - 1/K. The K of them sum to zero, so label 0 is minus the sum of the
  others; and a constant taken from all labels changes no difference between their energies.
- Softmax needs differences only: log-odds against label 0.

A row of pixels is taken through place kernel, slice, update, softmax and the splat for the next
update while it is in the processor's cache. The place kernel is a separable convolution cut at
five deviations, where pydensecrf has a second lattice.

Letters: K labels, C = K - 1 channels, H rows, W columns, M lattice points, [G, M, L] values at
the points as in `more.filtering.fast.passes`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from more.filtering.fast.jit import jit
from more.filtering.fast.lattice import build
from more.filtering.fast.passes import blur, normalise, point_values, slice_row, splat_row

F, I32 = np.float32, np.int32
LEAST = F(1e-5)  # of a probability
FAR = F(60)  # log-odds whose exp is still far from the end of float32
CUT = 5  # deviations of the place kernel


class Work(NamedTuple):
    """Working memory of a row of pixels, for `place_row`, `slice_row` and `softmax_row`.

    Attributes:
        whole: [G·L, W], what `slice_row` adds to.
        energy: [C, W], the first rows of `whole`.
        exponent: int32 [W].
        total: [W].
        padded: [W + 2·radius], a row with room for the taps on either side.
    """

    whole: np.ndarray
    energy: np.ndarray
    exponent: np.ndarray
    total: np.ndarray
    padded: np.ndarray


def marginals(image: np.ndarray, probs: np.ndarray, iterations: int, gaussian: tuple[float, float],
              bilateral: tuple[float, float, float]) -> np.ndarray:
    """Marginals of the dense CRF of one image.

    Args:
        image: [H, W, 3] uint8, RGB.
        probs: [K, H, W] float32 probabilities; the unary energy is -log(clip(p, 1e-5, 1)).
        iterations: mean-field updates.
        gaussian: deviation in pixels and weight of the place kernel.
        bilateral: deviations in pixels and grey levels and weight of the bilateral kernel.

    Returns:
        [K, H, W] float32.

    Raises:
        TooFineError: deviations too small for this engine.
    """
    labels, height, width = probs.shape
    if labels == 1:
        return np.ones_like(probs, F)
    lattice = build(image, *bilateral[:2])
    normalise(lattice, bilateral[2])
    place = place_kernel(height, width, *gaussian)
    odds = np.empty((height, labels - 1, width), F)
    log_odds(np.ascontiguousarray(probs, F), odds)
    values, fresh = (point_values(lattice.points, labels - 1) for _ in range(2))
    q, q_next = np.empty_like(odds), np.empty_like(odds)
    start(odds, lattice.corners, lattice.weights, values, q, iterations == 0)
    for number in range(iterations):
        blur(values, lattice.chains, lattice.starts)
        last = number == iterations - 1
        update(odds, lattice.corners, lattice.weights, values, fresh, q, q_next, place, last)
        values, fresh, q, q_next = fresh, values, q_next, q
        fresh.fill(0)
    out = np.empty(probs.shape, F)
    with_label_0(q, out)
    return out


@jit
def make_work(channels, values, width, radius) -> Work:
    """Working memory for rows of `width` pixels, `values` [G, M, L] of the points."""
    whole = np.zeros((values.shape[0] * values.shape[2], width), F)
    return Work(whole, whole[:channels], np.empty(width, I32), np.empty(width, F),
                np.zeros(width + 2 * radius, F))


@jit
def log_odds(probs, odds) -> None:
    """[K, H, W] probabilities into log(p_k / p_0), [H, C, W]."""
    labels, height, width = probs.shape
    first = np.empty(width, F)
    for y in range(height):
        for x in range(width):
            first[x] = np.log(min(max(probs[0, y, x], LEAST), F(1)))
        for c in range(labels - 1):
            for x in range(width):
                odds[y, c, x] = np.log(min(max(probs[c + 1, y, x], LEAST), F(1))) - first[x]


@jit
def start(odds, corners, weights, values, q, last) -> None:
    """Q - 1/K of the unary energies alone, and its splat; Q where there is nothing to come."""
    height, channels, width = odds.shape
    work = make_work(channels, values, width, 0)
    for y in range(height):
        work.energy[:] = odds[y]
        softmax_row(work, q[y], last)
        row = slice(y * width, (y + 1) * width)
        splat_row(q[y], corners[row], weights[row], values)


@jit
def update(odds, corners, weights, values, fresh, q, q_next, place, last) -> None:
    """One mean-field update.

    Args:
        odds: [H, C, W] unary log-odds.
        corners, weights: of the lattice.
        values: [G, M, L] splat and blur of `q`.
        fresh: [G, M, L] zeros, becomes the splat of `q_next`.
        q, q_next: [H, C, W] of Q - 1/K before and after.
        last: there is no next update: no splat, and `q_next` is Q itself, exact where it is small.
        place: the place kernel.
    """
    height, channels, width = odds.shape
    work = make_work(channels, values, width, place.taps.shape[0] - 1)
    energy, total = work.energy, work.total
    for y in range(height):
        place_row(q, y, place, work)
        row = slice(y * width, (y + 1) * width)
        slice_row(work.whole, corners[row], weights[row], values)
        for x in range(width):
            total[x] = F(0)
        for c in range(channels):
            for x in range(width):
                total[x] += energy[c, x]  # minus the energy of label 0
        for c in range(channels):
            for x in range(width):
                energy[c, x] += total[x] + odds[y, c, x]
        softmax_row(work, q_next[y], last)
        if not last:
            splat_row(q_next[y], corners[row], weights[row], fresh)


@jit
def with_label_0(q, out) -> None:
    """[H, C, W] of Q into [K, H, W]: label 0 has what the others leave."""
    height, channels, width = q.shape
    for y in range(height):
        for x in range(width):
            out[0, y, x] = F(1)
        for c in range(channels):
            for x in range(width):
                out[c + 1, y, x] = q[y, c, x]
                out[0, y, x] -= q[y, c, x]
        for x in range(width):
            out[0, y, x] = max(out[0, y, x], F(0))


# The place kernel: a Gaussian of the pixels' distance, as two convolutions. It is cut at five
# deviations and normalised as D^-½ K D^-½.


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
def place_row(q, y, place, work) -> None:
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
def add_two(total, a, first, b, second) -> None:
    """total += a · first + b · second."""
    for x in range(total.shape[0]):
        total[x] += a * first[x] + b * second[x]


@jit
def convolve(out, padded, taps) -> None:
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


# Softmax of log-odds against label 0, a row of pixels at a time. The loops are written out, so
# that each of them becomes vector instructions.


@jit
def softmax_row(work, q, last) -> None:
    """Turn log-odds against label 0 into Q - 1/K, or into Q after the last update.

    Args:
        work: `Work`; its `energy` [C, W] holds the log-odds, which are lost.
        q: [C, W], filled.
        last: whether there is no next update.
    """
    energy, total = work.energy, work.total
    channels, width = energy.shape
    far = I32(0)  # not the largest: that loop does not become vector instructions
    for c in range(channels):
        for x in range(width):
            far |= I32(energy[c, x] > FAR)
    for x in range(width):
        total[x] = F(1)  # exp of label 0
    if far:
        take_largest(energy, total)
        exponential(total, work.exponent)
    for c in range(channels):
        exponential(energy[c], work.exponent)
    for c in range(channels):
        for x in range(width):
            total[x] += energy[c, x]
    mean = F(0) if last else F(1) / F(channels + 1)
    for x in range(width):
        total[x] = F(1) / total[x]
    for c in range(channels):
        for x in range(width):
            q[c, x] = energy[c, x] * total[x] - mean


@jit
def take_largest(energy, label_0) -> None:
    """Take each pixel's largest log-odds from all its labels, label 0 among them."""
    channels, width = energy.shape
    for x in range(width):
        label_0[x] = F(0)
    for c in range(channels):
        for x in range(width):
            label_0[x] = min(label_0[x], -energy[c, x])
    for c in range(channels):
        for x in range(width):
            energy[c, x] += label_0[x]


@jit
def exponential(row, exponent) -> None:
    """exp in place, to 2e-7: 2^n · p(f) with a polynomial p on -½ ≤ f ≤ ½."""
    power = exponent.view(F)
    for x in range(row.shape[0]):
        scaled = max(row[x], F(-87)) * F(1.4426950408889634)
        whole = np.rint(scaled)
        part = scaled - whole
        exponent[x] = (I32(whole) + I32(127)) << I32(23)
        value = F(1.3333558e-3)
        value = value * part + F(9.6181291e-3)
        value = value * part + F(5.5504109e-2)
        value = value * part + F(2.4022651e-1)
        value = value * part + F(6.9314718e-1)
        row[x] = value * part + F(1)
    for x in range(row.shape[0]):
        row[x] *= power[x]
