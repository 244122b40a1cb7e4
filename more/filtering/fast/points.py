"""The points of the permutohedral lattice of (x, y, R, G, B) around pixels, and their numbers.

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
from more.filtering.fast.vectors import prefetch

F, U8, U64 = np.float32, np.uint8, np.uint64
SPARE = 3
EMPTY = U64(2**64 - 1)
GOLDEN = U64(0x9E3779B97F4A7C15)  # an odd number whose high product bits spread codes well
AHEAD = 16  # look-ups from the fetch of a slot to its use


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
def make_row(width) -> Row:
    """Working memory for rows of `width` pixels."""
    return Row(np.empty((6, width), F), np.empty((6, width), F), np.empty((7, width), np.int32),
               np.empty((6, width), F), np.empty((6, width), np.int64),
               np.empty((6, width), np.int32), np.empty((width, 6), np.int64))


@jit
def corners_of_row(colours, y, sigma_xy, sigma_rgb, grid, row, weights) -> None:
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
def _elevate(colours, y, sigma_xy, sigma_rgb, scale, elevated) -> None:
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
def _rank(elevated, cell, rank) -> None:
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
def _by_rank(grid, row) -> None:
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


# Numbers: a hash table from a point's code to its number.


class Table(NamedTuple):
    """Hash table of codes with linear probing, and a Bloom filter before it.

    Attributes:
        slots: uint64, code · 2^index_bits + number of the point, or EMPTY.
        shift: 64 less the bits of a slot's number.
        index_bits: bits of a point's number.
        bloom: uint64, one bit for each hash of a code that is there.
        bloom_shift: 64 less the bits of a place in the filter.
    """

    slots: np.ndarray
    shift: np.uint64
    index_bits: np.uint64
    bloom: np.ndarray
    bloom_shift: np.uint64


class Points(NamedTuple):
    """What is known of the points while the lattice is built.

    Attributes:
        codes: int64 [room].
        following: int32 [6, room], the next point along each axis, -1 where there is none.
        preceded: uint8 [room], bit j set where a point comes before along axis j.
    """

    codes: np.ndarray
    following: np.ndarray
    preceded: np.ndarray


def make_table(codes: int, index_bits: int) -> Table:
    """An empty table with room for so many codes, and so many bits for a point's number."""
    bits = codes.bit_length()
    bloom_bits = bits + 3
    return Table(np.full(1 << bits, EMPTY), U64(64 - bits), U64(index_bits),
                 np.zeros(1 << (bloom_bits - 6), U64), U64(64 - bloom_bits))


def make_points(room: int) -> Points:
    """Room for so many points, of which nothing is known yet."""
    return Points(np.empty(room, np.int64), np.empty((6, room), np.int32), np.empty(room, U8))


@jit
def number_codes(codes, todo, table, points, corners, found) -> int:
    """Look codes up in the table, adding those that are new.

    It stays one function: the look-up of a code is the innermost loop of the engine.

    Args:
        codes: int64 [W, 6] of the corners of a row of pixels.
        todo: places in `codes`, flattened, that are looked up.
        table: see `Table`.
        points: see `Points`.
        corners: uint32 [W, 6], filled at these places.
        found: how many points there are.

    Returns:
        How many there are now.
    """
    mask = U64(table.slots.shape[0] - 1)
    low = (U64(1) << table.index_bits) - U64(1)
    flat, numbers = codes.reshape(codes.size), corners.reshape(corners.size)
    for t in range(todo.shape[0]):
        coming = flat[todo[min(t + AHEAD, todo.shape[0] - 1)]]
        prefetch(table.slots, (U64(coming) * GOLDEN) >> table.shift)
        place = todo[t]
        code = flat[place]
        spread = U64(code) * GOLDEN
        slot = spread >> table.shift
        while True:
            entry = table.slots[slot]
            if entry >> table.index_bits == U64(code):
                numbers[place] = np.uint32(entry & low)
                break
            if entry == EMPTY:
                table.slots[slot] = (U64(code) << table.index_bits) | U64(found)
                bit = spread >> table.bloom_shift
                table.bloom[bit >> U64(6)] |= U64(1) << (bit & U64(63))
                points.codes[found] = code
                points.preceded[found] = 0
                for axis in range(6):
                    points.following[axis, found] = -1
                numbers[place] = np.uint32(found)
                found += 1
                break
            slot = (slot + U64(1)) & mask
    return found
