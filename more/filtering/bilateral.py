"""Filtering maps by the colours and places of their images: features of pixels, and the filter.

Shape letters: B images of height H and width W, K maps (labels) per image, N = H·W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from more.filtering.permutohedral import PermutohedralLattice
from more.tensors import constant


def bilateral_features(images: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """Features (x/σ_xy, y/σ_xy, R/σ_rgb, G/σ_rgb, B/σ_rgb) of every pixel.

    Args:
        images: [B, 3, H, W] RGB in 0..255. The channel order matters: the lattice is not invariant
            to a permutation of its axes.
        sigma_xy: standard deviation in pixels.
        sigma_rgb: standard deviation in grey levels.

    Returns:
        [B, H*W, 5] float32 (float64 for float64 images), pixels in row-major order.
    """
    colours = images if images.is_floating_point() else images.float()
    colours = colours if colours.dtype == torch.float64 else colours.float()
    batch, _, height, width = colours.shape
    places = _kept_places(height, width, sigma_xy, colours.dtype, colours.device)
    # Axis after axis in memory, which is the order the lattice works in.
    planes = [*places.expand(batch, -1, -1).unbind(2),
              *(colours.flatten(2) / constant([sigma_rgb], colours)).unbind(1)]
    return torch.stack(planes).permute(1, 2, 0)


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _kept_places(height: int, width: int, sigma_xy: float, dtype: torch.dtype,
                 device: torch.device) -> Tensor:
    """`spatial_features` of images of one size, as training has them: to be read only."""
    return spatial_features(height, width, sigma_xy, torch.empty(0, dtype=dtype, device=device))


def spatial_features(height: int, width: int, sigma_xy: float, like: Tensor) -> Tensor:
    """Features (x/σ_xy, y/σ_xy) of an image: [1, H*W, 2] with dtype and device of `like`."""
    grid = torch.meshgrid(torch.arange(height, device=like.device),
                          torch.arange(width, device=like.device), indexing="ij")
    places = torch.stack([grid[1], grid[0]]).view(2, 1, height * width).to(like.dtype)
    return (places / torch.full((1,), sigma_xy, dtype=like.dtype, device=like.device)) \
        .permute(1, 2, 0)


def bilateral_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float,
                     engine: Callable[[Tensor], Any] = PermutohedralLattice) -> Tensor:
    """Filter maps with the colours and places of their images (method §4.9).

    Args:
        images: [B, 3, H, W] RGB in 0..255.
        values: [B, K, H, W].
        sigma_xy: standard deviation in pixels.
        sigma_rgb: standard deviation in grey levels.
        engine: what makes a filter of features [B, N, 5]: `PermutohedralLattice`, another class of
            its interface, or `ExactGaussian` as an oracle on small images.

    Returns:
        [B, K, H, W] in the dtype of `values`, without gradient.
    """
    if images.shape[0] != values.shape[0] or images.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"images {list(images.shape)} and values {list(values.shape)} differ "
                         "in batch or size")
    kernel = engine(bilateral_features(images, sigma_xy, sigma_rgb))
    return kernel.filter(values.flatten(2)).view(values.shape)
