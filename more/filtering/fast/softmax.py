"""Softmax of log-odds against label 0, a row of pixels at a time.

The loops are written out, so that each of them becomes vector instructions.

Letters: C channels (the labels less label 0), W pixels of a row.
"""

from __future__ import annotations

import numpy as np

from more.filtering.fast.jit import jit

F, I32 = np.float32, np.int32
FAR = F(60)  # log-odds whose exp is still far from the end of float32


@jit
def softmax_row(work, q, last):
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
def take_largest(energy, label_0):
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
def exponential(row, exponent):
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
