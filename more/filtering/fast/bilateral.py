"""The bilateral filter by itself, on the CPU: for the dense energy in training (method §4.9).

The same lattice and the same gain as `more.filtering.permutohedral`, image after image; the images
of a batch go to as many threads as torch has, which jitted code allows (it holds no GIL).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from more.filtering import fast
from more.filtering.fast.jit import jit
from more.filtering.fast.lattice import TooFineError, build
from more.filtering.fast.passes import GAIN, blur, point_values, slice_row, splat_row
from more.filtering.permutohedral import bilateral_filter

F = np.float32


def lattice_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """`more.filtering.permutohedral.bilateral_filter`, faster where this engine can do it.

    On a GPU, in double precision, and with deviations too small for it, that one is called.
    """
    if images.device.type != "cpu" or values.dtype != torch.float32 \
            or not torch.isfinite(images).all():
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    fast.prepare()
    pictures = images.detach().permute(0, 2, 3, 1).contiguous().float().numpy()
    maps = values.detach().contiguous().numpy()
    try:
        with ThreadPoolExecutor(min(len(maps), torch.get_num_threads())) as threads:
            found = list(threads.map(filter_image, pictures, maps, [sigma_xy] * len(maps),
                                     [sigma_rgb] * len(maps)))
    except TooFineError:
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    return torch.from_numpy(np.stack(found))


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
def splat_maps(values, corners, weights, points):
    """Give maps [K, H, W] to the points [G, M, L], row by row."""
    channels, height, width = values.shape
    row = np.empty((channels, width), F)
    for y in range(height):
        row[:] = values[:, y]
        place = slice(y * width, (y + 1) * width)
        splat_row(row, corners[place], weights[place], points)


@jit
def slice_maps(out, corners, weights, points):
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
