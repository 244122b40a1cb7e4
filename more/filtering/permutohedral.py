"""Permutohedral lattice: a fast approximate Gaussian filter in a d-dimensional feature space.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010), with
the conventions of the 2011 dense-CRF code: nothing is normalised, lattice points that no pixel
touches count as zero, and the result is roughly 0.55 times the true Gaussian sum. The factor
cancels in a normalised filter (CRF) but not in the dense energy loss, whose weights rely on it.

Shape letters: B images, N pixels, K values (labels) per pixel, d feature dimensions, M lattice
points of the whole batch.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from more.filtering.lattice_points import enclosing_simplex, encode, span
from more.tensors import constant

_LARGEST = 1e6


class PermutohedralLattice:
    """The lattice of a batch of images; any number of `filter` calls can share it.

    Points of different images never meet: the image index is the leading digit of a point's code,
    so a batch gives bit by bit what its images give alone.

    A GPU is waited for once, here: the number of points is what memory is asked for. (There is no
    useful bound of it. At most each pixel has d+1 points of its own, about ten times what images
    have, and the filter's time and memory grow with it.) All that has to be known about the
    features comes with it in the same copy.

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
            self.batch, self.pixels, self.dimensions = features.shape
            self.dtype, self.device = features.dtype, features.device
            valid = features.abs() <= _LARGEST  # NaN is not
            # Others would lead outside of memory before they are known of.
            features = torch.where(valid, features, constant([0], features))
            cells, last, weights = enclosing_simplex(features.permute(2, 0, 1).flatten(1))
            found = encode(cells, last, self.batch)
            ordered, order = _sort(found.codes.t().flatten())
            bounds = self._number_points(ordered, valid.all(), found.bounds)
            self._build_operators(order, weights.t().contiguous())
            self._build_neighbours(ordered, order, found.axes, bounds)

    def _number_points(self, ordered: Tensor, valid: Tensor, bounds: Tensor) -> list[list[int]]:
        """The points' numbers, code by code; their total is read, with all that is checked.

        Args:
            ordered: codes, sorted.
            valid: whether all features are.
            bounds: of the codes.

        Returns:
            The bounds as numbers.
        """
        rises = torch.zeros_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=rises[1:])
        index = torch.int32 if ordered.numel() < 2**31 else torch.int64
        self._numbers = torch.cumsum(rises, 0, dtype=index)
        ends = self._numbers.view(self.batch, -1)[:, -1]
        read = torch.cat([valid[None], bounds.flatten(), ends]).tolist()
        if not read[0]:
            raise ValueError("features are not finite or beyond 1e6 standard deviations")
        edge, d = 1 + bounds.numel(), self.dimensions
        known = [read[1:1 + d], read[1 + d:edge]]
        span(known, self.batch)
        self._ends = [0, *(end + 1 for end in read[edge:])]  # points of all images before each
        self.points = self._ends[-1]
        return known

    def _build_operators(self, order: Tensor, weights: Tensor) -> None:
        """Both sparse operators out of one sort.

        Row by row: (columns, weights) to add up; `offsets` where the rows have no fixed length. The
        splat has one row more, for nothing: neighbours that are missing.

        Args:
            order: places of the sorted codes, pixel by pixel.
            weights: [B·N, d+1].
        """
        numbers, index = self._numbers, self._numbers.dtype
        every = torch.arange(self.points + 1, dtype=index, device=self.device)
        self._splat_offsets = _search(numbers, every, index)
        self._splat_columns = order.to(index).div_(self.dimensions + 1, rounding_mode="floor")
        self._splat_weights = weights.flatten().index_select(0, order)
        self._slice_columns = torch.empty_like(numbers).scatter_(0, order, numbers)
        self._slice_weights = weights.mul(1.0 / (1.0 + 2.0 ** -self.dimensions)).flatten()
        self._every = every
        del self._numbers

    def _build_neighbours(self, ordered: Tensor, order: Tensor, axes: Tensor,
                          bounds: list[list[int]]) -> None:
        """Every point and its two neighbours along each of the d+1 axes; `points` is "missing".

        A step along axis j adds d to coordinate j and takes 1 from all others. In the code that is
        one class less and one cell more along j; from class 0 it leads to class d, and all cells
        but that of j become one less (see `encode`).
        """
        *cells, block, image, _ = span(bounds, self.batch)
        firsts = self._splat_offsets[:-1]
        self.codes = ordered.index_select(0, firsts)
        lowest = order.index_select(0, firsts) % (self.dimensions + 1) == 0
        wanted = (axes - block)[:, None] + self.codes
        wanted.add_(lowest, alpha=image - sum(cells))
        place = _search(self.codes, wanted, torch.int64).clamp_(max=self.points - 1)
        missing = self.codes.index_select(0, place.flatten()).view_as(wanted) != wanted
        following = place.masked_fill_(missing, self.points)
        every = self._every.expand(len(axes), -1)
        self._neighbours = self._every.new_full((*every.shape, 3), self.points)
        own, before, after = self._neighbours.unbind(2)
        own.copy_(every)
        before.scatter_(1, following, every[:, :-1])
        before[:, -1] = self.points
        after[:, :-1] = following

    def part(self, rows: slice) -> PermutohedralLattice:
        """The lattice of some images of the batch, one after another; nothing is built anew."""
        first, end, _ = rows.indices(self.batch)
        if (first, end) == (0, self.batch):
            return self
        some = copy(self)
        low, high = self._ends[first], self._ends[end]
        corners = self.pixels * (self.dimensions + 1)
        own, pixels = slice(first * corners, end * corners), slice(first * self.pixels, None)
        some.batch, some.points = end - first, high - low
        some.codes = self.codes[low:high]
        some._ends = [number - low for number in self._ends[first:end + 1]]
        some._splat_offsets = self._splat_offsets[low:high + 1] - own.start
        some._splat_columns = self._splat_columns[own] - pixels.start
        some._splat_weights = self._splat_weights[own]
        some._slice_columns = self._slice_columns[own] - low
        some._slice_weights = self._slice_weights[own]
        some._every = self._every[:some.points + 1]
        some._neighbours = (self._neighbours[:, low:high + 1] - low).clamp_(max=some.points)
        some._neighbours[:, -1] = some.points
        return some

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
            rows = _turned(values.detach(), self.dtype).view(batch * pixels, labels)
            rows = self._slice(self._blur(self._splat(rows)))
            return _turned(rows.view(batch, pixels, labels), values.dtype)

    def _splat(self, rows: Tensor) -> Tensor:
        """[B·N, K] → [M+1, K]: what the pixels give to the points; the last row is zero."""
        return F.embedding_bag(self._splat_columns, rows, self._splat_offsets, mode="sum",
                               per_sample_weights=self._splat_weights)

    def _blur(self, lattice: Tensor) -> Tensor:
        """[M+1, K] blurred along the d+1 axes in turn: `new = old + ½(left + right)`."""
        starts = self._every * 3
        weights = constant([1.0, 0.5, 0.5], lattice).repeat(len(starts))
        for columns in self._neighbours:
            lattice = F.embedding_bag(columns.flatten(), lattice, starts, mode="sum",
                                      per_sample_weights=weights)
        return lattice

    def _slice(self, lattice: Tensor) -> Tensor:
        """[M+1, K] → [B·N, K]: what the points give to the pixels, times the filter's factor."""
        corners = self.dimensions + 1
        starts = torch.arange(0, self._slice_columns.numel(), corners, device=self.device,
                              dtype=self._slice_columns.dtype)
        return F.embedding_bag(self._slice_columns, lattice, starts, mode="sum",
                               per_sample_weights=self._slice_weights)


def _turned(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, n, m] as [B, m, n] of a dtype, in memory too."""
    out = torch.empty(maps.shape[0], maps.shape[2], maps.shape[1], dtype=dtype, device=maps.device)
    if maps.is_cuda:
        return out.copy_(maps.transpose(1, 2))
    for turned, plane in zip(out, maps, strict=True):  # on a CPU fast in two dimensions of a type
        turned.copy_(plane.to(dtype).t())
    return out


def _sort(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted codes and the place int64 of each; equal codes keep their order."""
    bits = codes.numel().bit_length()
    if codes.is_cuda or codes.dtype == torch.int32 or int(codes.amax()) >= 2 ** (63 - bits):
        return torch.sort(codes, stable=True)
    # Code and place in one number: numpy sorts those four times as fast as torch sorts pairs.
    packed = (codes << bits).add_(torch.arange(codes.numel()))
    packed.numpy().sort()
    return packed >> bits, packed & (2**bits - 1)


def _search(numbers: Tensor, wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """Places of `wanted`, of any shape, in the sorted `numbers`."""
    if numbers.is_cuda:
        return torch.searchsorted(numbers, wanted, out_int32=dtype == torch.int32)
    # numpy starts at the last place found, so rising queries cost it half.
    return torch.from_numpy(np.searchsorted(numbers.numpy(), wanted.numpy())).to(dtype)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Lattice arithmetic must not be lowered to 16 bits inside an autocast region."""
    return torch.autocast(tensor.device.type, enabled=False)
