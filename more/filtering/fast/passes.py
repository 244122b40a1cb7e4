"""Splat, blur and slice: the three passes of a lattice filter, over rows of channels.

Adams, Baek, Davis (2010): pixels give their values to the corners around them (splat), every
point takes half of what its two neighbours hold, axis after axis (blur), pixels take theirs back
(slice). What is filtered are channels: values [C, W] of a row of pixels outside, and at the points
[G, M, L] with C ≤ G·L, so that the L channels of a point lie together as one vector.

Letters: W pixels of a row, C channels, L channels of a vector (1, 2, 4 or 8), G groups of L,
M lattice points.
"""

from __future__ import annotations

import numpy as np

from more.filtering.fast.jit import jit
from more.filtering.fast.lattice import Lattice, build
from more.filtering.fast.vectors import (
    WIDTHS,
    add,
    add_column,
    collect,
    load,
    scale,
    scale_add,
    store,
    zeros,
)

F, U32, U64 = np.float32, np.uint32, np.uint64
GAIN = F(1 / (1 + 2.0**-5))  # of the filter in five dimensions


def point_values(points: int, channels: int) -> np.ndarray:
    """Zeros [G, M, L] for so many channels; M is at least 1 so that a vector can be read."""
    width = next((width for width in WIDTHS if width >= channels), WIDTHS[-1])
    return np.zeros((-(-channels // width), max(points, 1), width), F)


@jit
def blur(values, chains, starts) -> None:
    """new = old + ½ (before + after) along the six axes in turn, in place, of all groups."""
    width = values.shape[2]
    for group in values:
        if width == 1:
            _blur(group, chains, starts, zeros(1))
        elif width == 2:
            _blur(group, chains, starts, zeros(2))
        elif width == 4:
            _blur(group, chains, starts, zeros(4))
        else:
            _blur(group, chains, starts, zeros(8))


@jit
def _blur(values, chains, starts, nothing) -> None:
    """One group. A chain's end is marked by ~point: its share of the point after is 0, and what
    would be read there, the head of the next chain, begins that chain."""
    for axis in range(6):
        if starts[axis] == starts[axis + 1]:
            continue
        here, before = load(values, U64(U32(chains[starts[axis]])), nothing), nothing
        for i in range(starts[axis], starts[axis + 1]):
            end = chains[i] >> np.int32(31)  # -1 at the end of a chain, else 0
            half = F(0.5) + F(0.5) * F(end)
            next_point = chains[i + 1]
            next_point ^= next_point >> np.int32(31)
            after = load(values, U64(U32(next_point)), nothing)
            store(values, U64(U32(chains[i] ^ end)), scale_add(after, half, add(here, before)))
            before, here = scale(here, half), after


@jit
def splat_row(row, corners, weights, values) -> None:
    """Add a row of pixels, [C, W], to the points.

    Args:
        row: float32 [C, W].
        corners, weights: [W, 6], of the row's pixels.
        values: float32 [G, M, L]; lanes beyond C get what is never read.
    """
    width = values.shape[2]
    for g in range(values.shape[0]):
        if width == 1:
            _splat(row, U64(g), corners, weights, values[g], zeros(1))
        elif width == 2:
            _splat(row, U64(2 * g), corners, weights, values[g], zeros(2))
        elif width == 4:
            _splat(row, U64(4 * g), corners, weights, values[g], zeros(4))
        else:
            _splat(row, U64(8 * g), corners, weights, values[g], zeros(8))


@jit
def _splat(row, first, corners, weights, values, like) -> None:
    for x in range(corners.shape[0]):
        pixel = collect(row, first, U64(x), like)
        for k in range(6):
            point = U64(corners[x, k])
            store(values, point, scale_add(pixel, weights[x, k], load(values, point, like)))


@jit
def slice_row(row, corners, weights, values) -> None:
    """Add what the points hold to a row of pixels; arguments as in `splat_row`, but `row` is
    [G·L, W]: the rows beyond C are there for the rest of the vectors."""
    width = values.shape[2]
    for g in range(values.shape[0]):
        if width == 1:
            _slice(row, U64(g), corners, weights, values[g], zeros(1))
        elif width == 2:
            _slice(row, U64(2 * g), corners, weights, values[g], zeros(2))
        elif width == 4:
            _slice(row, U64(4 * g), corners, weights, values[g], zeros(4))
        else:
            _slice(row, U64(8 * g), corners, weights, values[g], zeros(8))


@jit
def _slice(row, first, corners, weights, values, nothing) -> None:
    for x in range(corners.shape[0]):
        pixel = nothing
        for k in range(6):
            pixel = scale_add(load(values, U64(corners[x, k]), nothing), weights[x, k], pixel)
        add_column(row, first, U64(x), pixel)


def normalise(lattice: Lattice, weight: float) -> None:
    """Turn the filter K into `weight` · D^-½ K D^-½, D = K·1, by scaling its weights in place.

    Half of the factor goes into the splat and half into the slice, so that no pass has to
    multiply by it again.
    """
    ones = point_values(lattice.points, 1)
    splat_ones(lattice.corners, lattice.weights, ones[0])
    blur(ones, lattice.chains, lattice.starts)
    scale_weights(lattice.corners, lattice.weights, ones[0], F(np.sqrt(GAIN * weight)), GAIN)


@jit
def splat_ones(corners, weights, values) -> None:
    """Give 1 of every pixel to the points."""
    for i in range(corners.shape[0]):
        for c in range(6):
            values[corners[i, c], 0] += weights[i, c]


@jit
def scale_weights(corners, weights, values, factor, gain) -> None:
    """weights · factor / √D, where D = gain · (slice of `values`) + 1e-20."""
    for i in range(corners.shape[0]):
        total = F(0)
        for c in range(6):
            total += weights[i, c] * values[corners[i, c], 0]
        share = factor / np.sqrt(total * gain + F(1e-20))
        for c in range(6):
            weights[i, c] *= share


def filter_image(image: np.ndarray, values: np.ndarray, sigma_xy: float, sigma_rgb: float
                 ) -> np.ndarray:
    """Filter the maps [K, H, W] of one image [H, W, 3], both float32.

    Raises:
        TooFineError: deviations too small for this engine.
    """
    lattice = build(image, sigma_xy, sigma_rgb, (float(image.min()), float(image.max())))
    points = point_values(lattice.points, len(values))
    splat_maps(values, lattice.corners, lattice.weights, points)
    blur(points, lattice.chains, lattice.starts)
    out = np.empty_like(values)
    slice_maps(out, lattice.corners, lattice.weights, points)
    return out


@jit
def splat_maps(values, corners, weights, points) -> None:
    """Give maps [K, H, W] to the points [G, M, L], row by row."""
    channels, height, width = values.shape
    row = np.empty((channels, width), F)
    for y in range(height):
        row[:] = values[:, y]
        place = slice(y * width, (y + 1) * width)
        splat_row(row, corners[place], weights[place], points)


@jit
def slice_maps(out, corners, weights, points) -> None:
    """Fill maps [K, H, W] with what the points hold, times the lattice's gain."""
    channels, height, width = out.shape
    row = np.empty((points.shape[0] * points.shape[2], width), F)
    for y in range(height):
        row[:] = F(0)
        place = slice(y * width, (y + 1) * width)
        slice_row(row, corners[place], weights[place], points)
        for c in range(channels):
            for x in range(width):
                out[c, y, x] = row[c, x] * GAIN
