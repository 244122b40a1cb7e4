"""Numbers for lattice points: a hash table from a point's code to its number.

Letters: W pixels of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from more.filtering.fast.jit import jit
from more.filtering.fast.vectors import prefetch

U8, U64 = np.uint8, np.uint64
EMPTY = U64(2**64 - 1)
GOLDEN = U64(0x9E3779B97F4A7C15)  # an odd number whose high product bits spread codes well
AHEAD = 16  # look-ups from the fetch of a slot to its use


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
    bits = codes.bit_length()
    bloom_bits = bits + 3
    return Table(np.full(1 << bits, EMPTY), U64(64 - bits), U64(index_bits),
                 np.zeros(1 << (bloom_bits - 6), U64), U64(64 - bloom_bits))


def make_points(room: int) -> Points:
    return Points(np.empty(room, np.int64), np.empty((6, room), np.int32), np.empty(room, U8))


@jit
def number_codes(codes, todo, table, points, corners, found):
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
