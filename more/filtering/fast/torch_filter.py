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
from more.filtering.bilateral import bilateral_filter
from more.filtering.fast.lattice import TooFineError
from more.filtering.fast.passes import filter_image


def lattice_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """`more.filtering.bilateral.bilateral_filter`, faster where this engine can do it.

    On a GPU, in double precision, and with deviations too small for it, that one is called.
    """
    if images.device.type != "cpu" or values.dtype != torch.float32 \
            or not torch.isfinite(images).all():
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    fast.load()
    pictures = images.detach().permute(0, 2, 3, 1).contiguous().float().numpy()
    maps = values.detach().contiguous().numpy()
    try:
        with ThreadPoolExecutor(min(len(maps), torch.get_num_threads())) as threads:
            found = list(threads.map(filter_image, pictures, maps, [sigma_xy] * len(maps),
                                     [sigma_rgb] * len(maps)))
    except TooFineError:
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    return torch.from_numpy(np.stack(found))
