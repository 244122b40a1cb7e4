"""Neighbours of lattice points: noted, searched, and strung together into chains.

Two points are neighbours along axis j when one is the other plus 5 along j and minus 1 along all
others. Along an axis the neighbours form chains.

Letters: M lattice points.
"""

from __future__ import annotations

import numpy as np

from more.filtering.fast.jit import jit
from more.filtering.fast.point_table import AHEAD, EMPTY, GOLDEN
from more.filtering.fast.vectors import prefetch

U8, U64 = np.uint8, np.uint64


@jit
def note_neighbours(todo, axes, corners, points):
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
def find_neighbours(found, grid, table, points):
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
def make_chains(found, following, preceded, chains, starts):
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
