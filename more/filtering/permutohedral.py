"""Permutohedral lattice: a fast approximate Gaussian filter in a d-dimensional feature space.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010), with
the conventions of the 2011 dense-CRF code: nothing is normalised, lattice points that no pixel
touches count as zero, and the result is roughly 0.55 times the true Gaussian sum. The factor
cancels in a normalised filter (CRF) but not in the dense energy loss, whose weights rely on it.

Shape letters: B images, N pixels, K values (labels) per pixel, d feature dimensions, M lattice
points of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from more.filtering.simplex import enclosing_simplex, encode

_LARGEST = 1e6


class PermutohedralLattice:
    """The lattice of a batch of images; any number of `filter` calls can share it.

    Points of different images never meet: the image index is the leading digit of a point's code,
    so a batch gives bit by bit what its images give alone.

    Args:
        features: [B, N, d] features in units of the filter's standard deviation. The lattice works
            in their dtype (float32 or float64) and on their device. No gradient flows to them.

    Raises:
        ValueError: features are not [B, N, d], not finite, or so far apart that the codes of the
            lattice points do not fit in 62 bits (a standard deviation far below a pixel).
    """

    def __init__(self, features: Tensor):
        if features.ndim != 3 or not features.is_floating_point():
            raise ValueError(f"features must be a float tensor [B, N, d], not "
                             f"{list(features.shape)} of {features.dtype}")
        with torch.no_grad(), _full_precision(features):
            features = features.detach()
            if not features.abs().amax() <= _LARGEST:  # also true for NaN
                raise ValueError("features are not finite or beyond 1e6 standard deviations")
            self.batch, self.pixels, self.dimensions = features.shape
            self.dtype, self.device = features.dtype, features.device
            cells, rank, weights = enclosing_simplex(features.permute(2, 0, 1).flatten(1))
            codes, places = encode(cells, rank, self.batch)
            self._build_operators(codes.t().flatten(), weights.t().contiguous())
            self._build_neighbours(places)

    def _build_operators(self, codes: Tensor, weights: Tensor) -> None:
        """One sort of the codes gives the points and both sparse operators.

        Args:
            codes: [B·N·(d+1)], pixel by pixel.
            weights: [B·N, d+1].
        """
        ordered, order = _sort(codes)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        starts = first.nonzero().flatten()
        self.codes = ordered.index_select(0, starts)
        self.points = self.codes.numel()
        index = torch.int32 if codes.numel() < 2**31 else torch.int64
        numbers = torch.cumsum(first, 0, dtype=index).sub_(1)
        # Row by row: (columns, weights) to add up; `offsets` where the rows have no fixed length.
        self._slice_columns = torch.empty_like(numbers).scatter_(0, order, numbers) \
            .view_as(weights)
        self._slice_weights = weights
        self._splat_columns = order.to(index).div_(self.dimensions + 1, rounding_mode="floor")
        self._splat_weights = weights.flatten().index_select(0, order)
        self._splat_offsets = starts.to(index)

    def _build_neighbours(self, places: list[int]) -> None:
        """Both neighbours of every point along each of the d+1 axes; `points` means "missing".

        A step along axis j adds d to coordinate j and takes 1 from all others. In the code that is
        one class less and one cell more along j; from class 0 it leads to class d, and all cells
        but that of j become one less (see `encode`).
        """
        block, cells = places[-1], places[:-1]
        axes = self.codes.new_tensor([*cells, 0])[:, None]
        lowest = torch.div(self.codes, block, rounding_mode="floor") % (self.dimensions + 1) == 0
        wanted = axes + torch.where(lowest, self.codes + (self.dimensions * block - sum(cells)),
                                    self.codes - block)
        place = _search(self.codes, wanted).clamp_(max=self.points - 1)
        found = self.codes.index_select(0, place.flatten()).view_as(wanted) == wanted
        following = place.masked_fill_(~found, self.points)
        index = self._slice_columns.dtype
        numbers = torch.arange(self.points, device=self.device, dtype=index)
        previous = torch.full((len(axes), self.points + 1), self.points, device=self.device,
                              dtype=index)
        previous.scatter_(1, following, numbers.expand_as(following))
        self._neighbours = torch.stack([previous[:, :-1], following.to(index)], 2)

    def filter(self, values: Tensor) -> Tensor:
        """Approximate `out_i = Σ_j exp(-½|f_i - f_j|²) v_j` up to the lattice's gain (method §4.9).

        Args:
            values: [B, K, N], any K, any float dtype.

        Returns:
            [B, K, N] in the dtype of `values`, without gradient. The operator is linear and, up to
            the order of the blurs, symmetric.
        """
        batch, labels, pixels = values.shape
        if (batch, pixels) != (self.batch, self.pixels):
            raise ValueError(f"values are [B={batch}, K, N={pixels}], the lattice was built for "
                             f"B={self.batch}, N={self.pixels}")
        with torch.no_grad(), _full_precision(values):
            values = values.detach()
            rows = torch.empty(batch, pixels, labels, dtype=self.dtype, device=self.device)
            for row, maps in zip(rows, values, strict=True):  # torch is fast in two dimensions
                row.copy_(maps.to(self.dtype).t())
            rows = self._slice(self._blur(self._splat(rows.flatten(0, 1))))
            rows.mul_(1.0 / (1.0 + 2.0 ** -self.dimensions))
            out = torch.empty(values.shape, dtype=values.dtype, device=self.device)
            for maps, row in zip(out, rows.view(batch, pixels, labels), strict=True):
                maps.copy_(row.to(values.dtype).t())
            return out

    def _splat(self, rows: Tensor) -> Tensor:
        """[B·N, K] → [M+1, K]: what the pixels give to the points; the last row is zero."""
        lattice = rows.new_zeros(self.points + 1, rows.shape[1])
        lattice[:-1] = F.embedding_bag(self._splat_columns, rows, self._splat_offsets, mode="sum",
                                       per_sample_weights=self._splat_weights)
        return lattice

    def _blur(self, lattice: Tensor) -> Tensor:
        """[M+1, K] blurred in place along the d+1 axes in turn: `new = old + ½(left + right)`."""
        for pairs in self._neighbours:
            lattice[:-1].add_(F.embedding_bag(pairs, lattice, mode="sum"), alpha=0.5)
        return lattice

    def _slice(self, lattice: Tensor) -> Tensor:
        """[M+1, K] → [B·N, K]: what the points give to the pixels."""
        return F.embedding_bag(self._slice_columns, lattice, mode="sum",
                               per_sample_weights=self._slice_weights)


def _sort(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted codes and the place int64 of each; equal codes keep their order."""
    bits = codes.numel().bit_length()
    if codes.is_cuda or codes.dtype == torch.int32 or int(codes.amax()) >= 2 ** (63 - bits):
        return torch.sort(codes, stable=True)
    # Code and place in one number: numpy sorts those four times as fast as torch sorts pairs.
    packed = (codes << bits).add_(torch.arange(codes.numel()))
    packed.numpy().sort()
    return packed >> bits, packed & (2**bits - 1)


def _search(codes: Tensor, wanted: Tensor) -> Tensor:
    """Places int64 of `wanted`, of any shape, in the sorted `codes`."""
    if codes.is_cuda:
        return torch.searchsorted(codes, wanted)
    # numpy starts at the last place found, so rising queries cost it half.
    return torch.from_numpy(np.searchsorted(codes.numpy(), wanted.numpy()))


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Lattice arithmetic must not be lowered to 16 bits inside an autocast region."""
    return torch.autocast(tensor.device.type, enabled=False)


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
    places = spatial_features(height, width, sigma_xy, colours)
    sigma = torch.full((1,), sigma_rgb, dtype=colours.dtype, device=colours.device)
    # Axis after axis in memory, which is the order the lattice works in.
    planes = [*places.expand(batch, -1, -1).unbind(2), *(colours.flatten(2) / sigma).unbind(1)]
    return torch.stack(planes).permute(1, 2, 0)


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
