"""Permutohedral lattice: a fast approximate Gaussian filter in a d-dimensional feature space.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010), with
the conventions of the 2011 dense-CRF code: nothing is normalised, lattice points that no pixel
touches count as zero, and the result is roughly 0.55 times the true Gaussian sum. The factor
cancels in a normalised filter (CRF) but not in the dense energy loss, whose weights rely on it.

Shape letters: B images, N pixels, K values (labels) per pixel, d feature dimensions, M lattice
points of the whole batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

_CODE_LIMIT = 2**62
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
            codes, weights, steps = _enclosing_simplex(features)
            self._build_operators(codes.flatten(), weights.flatten())
            self._build_neighbours(steps)

    def _build_operators(self, codes: Tensor, weights: Tensor) -> None:
        """One sort of the codes gives the points and both sparse operators."""
        corners, total = self.dimensions + 1, self.batch * self.pixels
        ordered, order = torch.sort(codes, stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        self.codes = ordered[first]
        self.points = self.codes.numel()
        vertex = torch.empty_like(order)
        vertex[order] = torch.cumsum(first, 0) - 1
        starts = first.nonzero().flatten()
        bounds = torch.cat([starts, starts.new_tensor([ordered.numel()])])
        rows = torch.arange(total + 1, device=codes.device) * corners
        pixel = torch.div(order, corners, rounding_mode="floor")
        self._splat = _rows_sum(bounds, pixel, weights[order], total)
        self._slice = _rows_sum(rows, vertex, weights, self.points)

    def _build_neighbours(self, steps: Tensor) -> None:
        """Both neighbours of every point along each of the d+1 axes; `points` means "missing"."""
        shape = (self.dimensions + 1, self.points)
        wanted = self.codes + steps[:, None]
        place = torch.searchsorted(self.codes, wanted).clamp_(max=self.points - 1)
        there = self.codes[place] == wanted
        self._next = place.masked_fill(~there, self.points)
        previous = torch.full((shape[0], self.points + 1), self.points, device=self.device)
        numbers = torch.arange(self.points, device=self.device)
        previous.scatter_(1, self._next, numbers.expand(shape))
        self._previous = previous[:, :-1]

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
            flat = values.detach().to(self.dtype).permute(0, 2, 1).reshape(batch * pixels, labels)
            out = self._slice(self._blur(self._splat(flat.contiguous())))
            out = out * (1.0 / (1.0 + 2.0 ** -self.dimensions))
            return out.view(batch, pixels, labels).permute(0, 2, 1).to(values.dtype).contiguous()

    def _blur(self, lattice: Tensor) -> Tensor:
        """[M, K] blurred along the d+1 axes in turn: `new = old + ½(left + right)`."""
        padded = torch.cat([lattice, lattice.new_zeros(1, lattice.shape[1])])
        left, right = torch.empty_like(lattice), torch.empty_like(lattice)
        for before, after in zip(self._previous, self._next, strict=True):
            torch.index_select(padded, 0, before, out=left)
            torch.index_select(padded, 0, after, out=right)
            padded[:-1].add_(left.add_(right), alpha=0.5)
        return padded[:-1]


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of the lattice simplex around each feature vector, and their barycentric weights.

    Args:
        features: [B, N, d].

    Returns:
        codes [B, N, d+1] int64 of the corners, weights [B, N, d+1] that sum to one, and steps
        [d+1], the change of code from a point to its neighbour along each axis.
    """
    d = features.shape[-1]
    elevated = _elevate(features)
    cell = torch.round(elevated * (1.0 / (d + 1)))  # half to even
    nearest, surplus = cell * (d + 1), cell.sum(-1, keepdim=True).long()
    # Rank by descending remainder; equal remainders rank by index.
    order = torch.sort(elevated - nearest, dim=-1, descending=True, stable=True).indices
    count = torch.arange(d + 1, device=features.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, count) + surplus
    wrap = (rank < 0).long() - (rank > d).long()  # back onto the plane of zero sum
    rank += wrap * (d + 1)
    nearest += wrap * (d + 1)
    remainder = (elevated - nearest) * (1.0 / (d + 1))
    by_rank = torch.empty_like(remainder).scatter_(-1, rank, remainder).flip(-1)
    weights = by_rank.clone()
    weights[..., 1:] -= by_rank[..., :-1]
    weights[..., 0] += 1.0 - by_rank[..., -1]
    codes, steps = _encode(nearest.long(), rank)
    return codes, weights, steps


def _elevate(features: Tensor) -> Tensor:
    """[B, N, d] into the hyperplane of zero sum in d+1 dimensions, scaled so that blur is unit."""
    d = features.shape[-1]
    scale = torch.tensor([math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))
                          for i in range(d)], dtype=features.dtype, device=features.device)
    scaled = features * scale
    total, columns = torch.zeros_like(scaled[..., 0]), []
    for axis in range(d, 0, -1):
        value = scaled[..., axis - 1]
        columns.append(total - axis * value)
        total = total + value
    return torch.stack([total, *columns[::-1]], -1)


def _encode(nearest: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed-radix codes of (image, lattice point) of the d+1 corners of each pixel's simplex.

    Corner c has the coordinates nearest_i + c - (d+1)·[rank_i > d - c]; the last of the d+1
    coordinates follows from the zero sum and takes no digit. A step to the neighbour along axis j
    adds d to coordinate j and takes 1 from all others, so it is a constant in code space; a margin
    in every digit keeps it from carrying into the next one.

    Args:
        nearest: [B, N, d+1] int64, the corner of remainder zero.
        rank: [B, N, d+1] int64, a permutation of 0..d.

    Returns:
        codes [B, N, d+1] and steps [d+1], both int64.
    """
    batch, d = nearest.shape[0], nearest.shape[-1] - 1
    low, high = (bound.tolist() for bound in torch.aminmax(nearest[..., :d].reshape(-1, d), dim=0))
    margin = 2 * (d + 1)
    radix = [top - bottom + 1 + 2 * margin for bottom, top in zip(low, high, strict=True)]
    place = [math.prod(radix[:i]) for i in range(d + 1)]
    if place[d] * batch >= _CODE_LIMIT:
        raise ValueError("the features span too many lattice cells for 64-bit codes: raise the "
                         "standard deviations or filter fewer images at a time")
    code = torch.arange(batch, device=nearest.device)[:, None] * place[d]
    for axis in range(d):
        code = code + (nearest[..., axis] - (low[axis] - margin)) * place[axis]
    places = torch.tensor([*place[:d], 0], device=nearest.device)
    ranked = torch.empty_like(rank).scatter_(-1, rank, places.expand_as(rank)).flip(-1)
    wrapped = (ranked.cumsum(-1) - ranked) * (d + 1)  # places of the c highest ranks
    corner = torch.arange(d + 1, device=nearest.device) * sum(place[:d])
    steps = places * (d + 1) - sum(place[:d])
    return code[..., None] + corner - wrapped, steps


def _rows_sum(bounds: Tensor, columns: Tensor, weights: Tensor,
              width: int) -> Callable[[Tensor], Tensor]:
    """The sparse operator whose row r adds entries `bounds[r]..bounds[r+1]`: [width, K] → [R, K].

    On the CPU a CSR product. cuSPARSE promises no fixed order of summation, so on a GPU each row
    is a segment of the gathered products, added up in order by one thread.
    """
    if weights.is_cuda:
        return partial(_segments_sum, bounds, columns, weights)
    size = (bounds.numel() - 1, width)
    index = torch.int32 if max(weights.numel(), *size) < 2**31 else torch.int64
    with warnings.catch_warnings():  # torch announces on first use that CSR support is in beta
        warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")
        matrix = torch.sparse_csr_tensor(bounds.to(index), columns.to(index), weights, size,
                                         check_invariants=False)
    return partial(torch.matmul, matrix)


def _segments_sum(bounds: Tensor, columns: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    products = values.index_select(0, columns).mul_(weights[:, None])
    return torch.segment_reduce(products, "sum", offsets=bounds, axis=0)


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
    batch, channels, height, width = colours.shape
    places = spatial_features(height, width, sigma_xy, colours)
    sigma = torch.full((channels,), sigma_rgb, dtype=colours.dtype, device=colours.device)
    colours = colours.permute(0, 2, 3, 1).reshape(batch, height * width, channels) / sigma
    return torch.cat([places.expand(batch, -1, -1), colours], -1)


def spatial_features(height: int, width: int, sigma_xy: float, like: Tensor) -> Tensor:
    """Features (x/σ_xy, y/σ_xy) of an image: [1, H*W, 2] with dtype and device of `like`."""
    grid = torch.meshgrid(torch.arange(height, device=like.device),
                          torch.arange(width, device=like.device), indexing="ij")
    places = torch.stack([grid[1], grid[0]], -1).view(1, height * width, 2).to(like.dtype)
    return places / torch.full((2,), sigma_xy, dtype=like.dtype, device=like.device)


def bilateral_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float,
                     engine: type = PermutohedralLattice) -> Tensor:
    """Filter maps with the colours and places of their images (method §4.9).

    Args:
        images: [B, 3, H, W] RGB in 0..255.
        values: [B, K, H, W].
        sigma_xy: standard deviation in pixels.
        sigma_rgb: standard deviation in grey levels.
        engine: `PermutohedralLattice`, or `ExactGaussian` as an oracle on small images.

    Returns:
        [B, K, H, W] in the dtype of `values`, without gradient.
    """
    if images.shape[0] != values.shape[0] or images.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"images {list(images.shape)} and values {list(values.shape)} differ "
                         "in batch or size")
    kernel = engine(bilateral_features(images, sigma_xy, sigma_rgb))
    return kernel.filter(values.flatten(2)).view(values.shape)
