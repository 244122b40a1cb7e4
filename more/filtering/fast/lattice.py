"""The lattice of one image: its points, the corners of every pixel, and the chains of neighbours.

Pixels that lie close together share corners, so an image of N pixels has about N lattice points
(0.4 to 2 N on photographs at 3 grey levels) instead of 6 N. The points are numbered as they are
met, row by row, which keeps points that are used together near each other in memory.

Two points are neighbours along axis j when one is the other plus 5 along j and minus 1 along all
others. Along an axis the neighbours form chains. A blur runs through each chain once, with one
load and one store a point (`more.filtering.fast.passes.blur`); points without a neighbour need
none and are in no chain.

Letters: H rows, W columns, N = H·W pixels, M lattice points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from more.filtering.fast.jit import jit
from more.filtering.fast.points import (
    AHEAD,
    EMPTY,
    GOLDEN,
    corners_of_row,
    make_grid,
    make_points,
    make_row,
    make_table,
    number_codes,
)
from more.filtering.fast.vectors import prefetch

F, U8, U64 = np.float32, np.uint8, np.uint64
_LARGEST = 2**31 - 2


class Lattice(NamedTuple):
    """What filtering needs.

    Attributes:
        corners: uint32 [N, 6], numbers of the points around each pixel.
        weights: float32 [N, 6], their barycentric weights.
        chains: int32, points of all chains one after another, axis after axis; the last one of a
            chain is stored as ~point (negative). One spare entry at the end.
        starts: int64 [7], where each axis begins in `chains`.
        points: M.
    """

    corners: np.ndarray
    weights: np.ndarray
    chains: np.ndarray
    starts: np.ndarray
    points: int


class TooFineError(ValueError):
    """The features span more lattice cells than 64 bits can number."""


def _first_room(height: int, width: int) -> int:
    return 2 * height * width + 6 * width + 16


def build(image: np.ndarray, sigma_xy: float, sigma_rgb: float,
          colours: tuple[float, float] = (0.0, 255.0)) -> Lattice:
    """The lattice of an image's pixels with the features (x, y)/σ_xy and (R, G, B)/σ_rgb.

    Args:
        image: [H, W, 3] uint8 or float32.
        sigma_xy, sigma_rgb: standard deviations in pixels and in units of the colours.
        colours: lowest and highest value that the image holds.

    Raises:
        TooFineError: deviations so small that codes and numbers of points exceed 64 bits.
    """
    height, width = image.shape[:2]
    image = np.ascontiguousarray(image, F)
    grid = make_grid(height, width, sigma_xy, sigma_rgb, colours)
    corners = np.empty((height * width, 6), np.uint32)
    weights = np.empty((height * width, 6), F)
    room = _first_room(height, width)
    while True:
        index_bits = room.bit_length()
        if room > _LARGEST or grid.bits + index_bits > 64:
            raise TooFineError(f"lattice points of {height}×{width} pixels at deviations of "
                               f"{sigma_xy:g} and {sigma_rgb:g} exceed 64 bits")
        table, points = make_table(4 * room // 3, index_bits), make_points(room)
        found = add_points(image, F(sigma_xy), F(sigma_rgb), grid, table, points, corners, weights)
        if found >= 0:
            break
        room *= 2  # an image of much texture
    find_neighbours(found, grid, table, points)
    del table
    chains, starts = np.empty(6 * found + 1, np.int32), np.empty(7, np.int64)
    used = make_chains(found, points.following, points.preceded, chains, starts)
    return Lattice(corners, weights, chains[:used + 1], starts, found)


@jit
def add_points(image, sigma_xy, sigma_rgb, grid, table, points, corners, weights) -> int:
    """Number the points of all pixels, fill `corners` and `weights`, note neighbours seen.

    The corners of a simplex are neighbours of each other, so a third of all neighbours are known
    without a search.

    Returns:
        M, or -1 where the points need more room.
    """
    height, width = image.shape[:2]
    row, above = make_row(width), np.full((width, 6), -1, np.int64)
    todo = np.empty(6 * width + 1, np.int64)
    found, room = 0, points.codes.shape[0]
    for y in range(height):
        if found > room - 6 * width:
            return -1
        first = y * width
        corners_of_row(image[y], y, sigma_xy, sigma_rgb, grid, row, weights[first:first + width])
        count = _unshared(row.codes, above, todo)
        found = number_codes(row.codes, todo[:count], table, points,
                             corners[first:first + width], found)
        _share(row.codes, above, corners, first)
        note_neighbours(todo[:count], row.axes, corners[first:first + width], points)
        above[:] = row.codes
    return found


@jit
def _unshared(codes, above, todo) -> int:
    """Corners 6·x + c that are the corner c of neither the left pixel nor the upper one."""
    count = 0
    for c in range(6):
        todo[count] = c
        count += np.int64(codes[0, c] != above[0, c])
    for x in range(1, codes.shape[0]):
        for c in range(6):
            todo[count] = 6 * x + c  # overwritten unless it counts: no branch
            count += np.int64((codes[x - 1, c] != codes[x, c]) & (above[x, c] != codes[x, c]))
    return count


@jit
def _share(codes, above, corners, first) -> None:
    """Take the numbers of shared corners from the left or the upper pixel."""
    width = codes.shape[0]
    if first > 0:
        for c in range(6):
            if above[0, c] == codes[0, c]:
                corners[first, c] = corners[first - width, c]
    for x in range(1, width):
        i = first + x
        up = i - width if first > 0 else i
        for c in range(6):
            number = corners[i, c]
            number = corners[up, c] if above[x, c] == codes[x, c] else number
            number = corners[i - 1, c] if codes[x - 1, c] == codes[x, c] else number
            corners[i, c] = number


# Neighbours: noted, searched, and strung together into chains.


@jit
def note_neighbours(todo, axes, corners, points) -> None:
    """Corner c follows corner c - 1 (and 0 follows 5) along the axis that changes between them."""
    last = -1
    for place in todo:
        x = place // 6
        if x == last:
            continue
        last = x
        after = corners[x, 5]
        for c in range(6):
            axis, point = axes[(6 - c) % 6, x], corners[x, c]
            points.following[axis, point] = np.int32(after)
            points.preceded[after] |= U8(1) << U8(axis)
            after = point


@jit
def find_neighbours(found, grid, table, points) -> None:
    """Search the following points that no simplex of a pixel has shown.

    Along axis j the code changes by one class less and one cell more along j; from class 0 it
    leads to class 5, and all cells but that of j become one less.

    The loops stay in one function: they share its buffers, and a batch in the cache.
    """
    mask, batch = U64(table.slots.shape[0] - 1), 256
    low = (U64(1) << table.index_bits) - U64(1)
    cells = grid.place.sum()
    wanted, origin = np.empty(6 * batch + 1, np.int64), np.empty(6 * batch + 1, np.int64)
    for start in range(0, found, batch):
        count = 0
        for point in range(start, min(found, start + batch)):
            code = points.codes[point]
            base = code - grid.block if code >= grid.block else code + 5 * grid.block - cells
            for axis in range(6):
                key = base + grid.place[axis]
                bit = (U64(key) * GOLDEN) >> table.bloom_shift
                likely = (table.bloom[bit >> U64(6)] >> (bit & U64(63))) & U64(1)
                wanted[count], origin[count] = key, point * 8 + axis
                count += np.int64(likely) & np.int64(points.following[axis, point] < 0)
        for t in range(count):
            coming = U64(wanted[min(t + AHEAD, count - 1)])
            prefetch(table.slots, (coming * GOLDEN) >> table.shift)
            key = U64(wanted[t])
            slot = (key * GOLDEN) >> table.shift
            while table.slots[slot] != EMPTY:
                entry = table.slots[slot]
                if entry >> table.index_bits == key:
                    after, axis = np.uint32(entry & low), origin[t] & 7
                    points.following[axis, origin[t] >> 3] = np.int32(after)
                    points.preceded[after] |= U8(1) << U8(axis)
                    break
                slot = (slot + U64(1)) & mask


@jit
def make_chains(found, following, preceded, chains, starts) -> int:
    """Walk from every point that has a next but none before; returns the length of `chains`."""
    length, batch = 0, 1024
    heads = np.empty(batch + 1, np.uint32)
    for axis in range(6):
        starts[axis] = length
        after = following[axis]
        for start in range(0, found, batch):
            count = 0
            for point in range(start, min(found, start + batch)):
                heads[count] = point
                alone = (preceded[point] >> U8(axis)) & U8(1)
                count += np.int64(after[point] >= 0) & np.int64(alone == 0)
            for t in range(count):
                point = heads[t]
                while after[point] >= 0:
                    chains[length] = point
                    length += 1
                    point = np.uint32(after[point])
                chains[length] = ~np.int32(point)
                length += 1
    starts[6] = length
    chains[length] = 0
    return length
