"""Where the pixels of a row lie in the permutohedral lattice of (x, y, R, G, B).

The lattice (Adams, Baek, Davis 2010) lies in the plane of zero sum in six dimensions. A feature
vector lies in one simplex, whose six corners are lattice points; corner c leaves the remainder c
when its coordinates are divided by 6. A point is named by one whole number, its code: the digits
are c, then ⌊coordinate/6⌋ of the first five axes in a mixed radix; the sixth follows from the zero
sum. Two spare values on either side of every digit keep a neighbour's code from being another's.

Letters: H rows, W pixels of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from more.filtering.fast.jit import jit

F = np.float32
SPARE = 3


class Grid(NamedTuple):
    """Numbers of the lattice of one image size.

    Attributes:
        scale: float32 [5], of each axis of the features before it enters the plane.
        low: int64 [5], lowest value of each digit.
        place: int64 [6], what each digit counts in a code; the sixth axis has none (0).
        block: what the class c counts in a code.
        bits: bits of the largest code.
    """

    scale: np.ndarray
    low: np.ndarray
    place: np.ndarray
    block: np.int64
    bits: int


class Row(NamedTuple):
    """Working memory of `corners_of_row`, [6, W] unless said."""

    elevated: np.ndarray
    cell: np.ndarray
    rank: np.ndarray  # [7, W]; the last one: sum of the cells
    remainder: np.ndarray
    places: np.ndarray
    axes: np.ndarray  # the axis with a given rank
    codes: np.ndarray  # [W, 6]


def make_grid(height: int, width: int, sigma_xy: float, sigma_rgb: float,
              colours: tuple[float, float] = (0.0, 255.0)) -> Grid:
    """The lattice of images of a size.

    Args:
        height, width: pixels.
        sigma_xy, sigma_rgb: standard deviations in pixels and in units of the colours.
        colours: lowest and highest value of a colour.
    """
    scale = [math.sqrt(2 / 3) * 6 / math.sqrt((k + 1) * (k + 2)) for k in range(5)]
    spans = [(0.0, (width - 1) / sigma_xy), (0.0, (height - 1) / sigma_xy),
             *[(colours[0] / sigma_rgb, colours[1] / sigma_rgb)] * 3]
    least = [low * factor for (low, _), factor in zip(spans, scale, strict=True)]
    most = [high * factor for (_, high), factor in zip(spans, scale, strict=True)]
    low, place, block = [], [], 1
    for axis in range(5):
        bottom, top = sum(least[axis:]), sum(most[axis:])
        if axis:
            bottom, top = bottom - axis * most[axis - 1], top - axis * least[axis - 1]
        low.append(math.floor(bottom / 6) - SPARE)
        place.append(block)
        block *= math.ceil(top / 6) + SPARE - low[-1] + 1
    if block >= 2**60:  # the caller looks at the bits before it uses the rest
        return Grid(np.zeros(5, F), np.zeros(5, np.int64), np.zeros(6, np.int64), np.int64(0),
                    (6 * block).bit_length())
    return Grid(np.array(scale, F), np.array(low, np.int64), np.array([*place, 0], np.int64),
                np.int64(block), (6 * block).bit_length())


@jit
def make_row(width):
    """Working memory for rows of `width` pixels."""
    return Row(np.empty((6, width), F), np.empty((6, width), F), np.empty((7, width), np.int32),
               np.empty((6, width), F), np.empty((6, width), np.int64),
               np.empty((6, width), np.int32), np.empty((width, 6), np.int64))


@jit
def corners_of_row(colours, y, sigma_xy, sigma_rgb, grid, row, weights):
    """Codes (in `row`) and barycentric weights of the six corners around each pixel of a row.

    Every loop over x is free of branches and becomes vector instructions.

    Args:
        colours: float32 [W, 3].
        y: number of the row.
        sigma_xy, sigma_rgb: standard deviations.
        grid, row: see `Grid` and `Row`; `row.codes` and `row.axes` are results.
        weights: float32 [W, 6], filled.
    """
    _elevate(colours, y, sigma_xy, sigma_rgb, grid.scale, row.elevated)
    _rank(row.elevated, row.cell, row.rank)
    _by_rank(grid, row)
    width, remainder = colours.shape[0], row.remainder
    for x in range(width):
        weights[x, 0] = remainder[0, x] + F(1) - remainder[5, x]
        for c in range(1, 6):
            weights[x, c] = remainder[c, x] - remainder[c - 1, x]


@jit
def _elevate(colours, y, sigma_xy, sigma_rgb, scale, elevated):
    """Features into the plane of zero sum, scaled so that the blur has unit deviation."""
    row = F(y) / sigma_xy * scale[1]
    for x in range(colours.shape[0]):
        blue = colours[x, 2] / sigma_rgb * scale[4]
        green = colours[x, 1] / sigma_rgb * scale[3]
        red = colours[x, 0] / sigma_rgb * scale[2]
        column = F(x) / sigma_xy * scale[0]
        elevated[5, x] = F(-5) * blue
        total = blue
        elevated[4, x] = total - F(4) * green
        total += green
        elevated[3, x] = total - F(3) * red
        total += red
        elevated[2, x] = total - F(2) * row
        total += row
        elevated[1, x] = total - column
        elevated[0, x] = total + column


@jit
def _rank(elevated, cell, rank):
    """The nearest point of remainder zero, as `cell`, and the ranks of the six remainders.

    `elevated` becomes the remainder / 6, counted from the cell. Equal remainders rank by axis.
    """
    width = elevated.shape[1]
    for x in range(width):
        rank[6, x] = 0
    for k in range(6):
        for x in range(width):
            nearest = np.rint(elevated[k, x] * F(1 / 6))
            cell[k, x] = nearest
            elevated[k, x] -= nearest * F(6)
            rank[6, x] += np.int32(nearest)
            rank[k, x] = np.int32(k)
    for i in range(5):
        for j in range(i + 1, 6):
            for x in range(width):
                passes = np.int32(elevated[j, x] > elevated[i, x])
                rank[i, x] += passes
                rank[j, x] -= passes
    for k in range(6):  # back onto zero sum
        for x in range(width):
            shifted = rank[k, x] + rank[6, x]
            wrap = np.int32(shifted < 0) - np.int32(shifted > 5)
            rank[k, x] = shifted + wrap * np.int32(6)
            cell[k, x] += F(wrap)
            elevated[k, x] = (elevated[k, x] - F(wrap) * F(6)) * F(1 / 6)


@jit
def _by_rank(grid, row):
    """Remainders in ascending order, axes and codes of the corners.

    From corner c - 1 to c the class grows by one and the axis of rank 6 - c drops by a cell.
    """
    rank, cell, codes = row.rank, row.cell, row.codes
    for x in range(codes.shape[0]):
        code = np.int64(0)
        for k in range(6):
            place = rank[k, x]
            row.axes[place, x] = k
            row.remainder[5 - place, x] = row.elevated[k, x]
            row.places[place, x] = grid.place[k]
            if k < 5:
                code += (np.int64(cell[k, x]) - grid.low[k]) * grid.place[k]
        codes[x, 0] = code
        for c in range(1, 6):
            code = code + grid.block - row.places[6 - c, x]
            codes[x, c] = code
