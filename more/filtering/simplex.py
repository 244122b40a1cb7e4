"""Where feature vectors lie in the permutohedral lattice, and the numbers that name its points.

Shape letters: P feature vectors (the pixels of all images, one image after another), d dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CODE_LIMIT = 2**62


def enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each feature vector lies in the lattice.

    Args:
        features: [d, P], an axis after the other.

    Returns:
        cells [d+1, P] whole numbers: (d+1)·cells is the corner of remainder zero of the enclosing
        simplex; rank [d+1, P] int64 of the axes by descending remainder, a permutation of 0..d;
        weights [d+1, P] of the d+1 corners, barycentric, adding up to one.
    """
    d = features.shape[0]
    elevated = _elevate(features)
    cells = torch.round(elevated * (1.0 / (d + 1)))  # half to even
    surplus = cells.sum(0).to(torch.int8)  # at most (d+1)/2 either way
    remainder = elevated - cells * (d + 1)
    rank = torch.arange(d + 1, dtype=torch.int8, device=features.device)[:, None] \
        .repeat(1, features.shape[1])
    for i in range(d):  # descending; equal remainders rank by index
        for j in range(i + 1, d + 1):
            passes = (remainder[j] > remainder[i]).view(torch.int8)
            rank[i] += passes
            rank[j] -= passes
    rank += surplus
    wrap = (rank < 0).view(torch.int8) - (rank > d).view(torch.int8)  # back onto zero sum
    rank, cells = (rank + wrap * (d + 1)).long(), cells + wrap
    remainder = (elevated - cells * (d + 1)).mul_(1.0 / (d + 1))
    by_rank = torch.empty_like(remainder).scatter_(0, rank, remainder).flip(0)
    weights = by_rank.clone()
    weights[1:] -= by_rank[:-1]
    weights[0] += 1.0 - by_rank[-1]
    return cells, rank, weights


def _elevate(features: Tensor) -> Tensor:
    """[d, P] into the hyperplane of zero sum in d+1 dimensions, scaled so that blur is unit."""
    d = features.shape[0]
    total, rows = torch.zeros_like(features[0]), []
    for axis in range(d, 0, -1):
        scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt(axis * (axis + 1))
        value = features[axis - 1] * scale
        rows.append(total - axis * value)
        total = total + value
    return torch.stack([total, *rows[::-1]])


def encode(cells: Tensor, rank: Tensor, batch: int) -> tuple[Tensor, list[int]]:
    """Mixed-radix codes of (image, lattice point) of the d+1 corners of each pixel's simplex.

    Corner c has the coordinates c + (d+1)·k_i with k_i = cells_i - [rank_i > d - c]: all of them
    leave the remainder c, the class of the point. Its code has the digits (image, c, k_1 … k_d);
    the last coordinate follows from the zero sum. Neighbours have the digits k_i - 1 to k_i + 1,
    so one spare value a digit keeps a neighbour's code from being that of another point.

    Args:
        cells, rank: [d+1, P] as from `enclosing_simplex`, P = B·N.
        batch: B.

    Returns:
        codes [d+1, P], int32 where they fit (sorting is twice as fast) else int64; and the places
        of the d cell digits, followed by that of the class.
    """
    d, pixels = cells.shape[0] - 1, cells.shape[1] // batch
    low, high = (bound.long().tolist() for bound in torch.aminmax(cells[:d], dim=1))
    radix = [top - bottom + 3 for bottom, top in zip(low, high, strict=True)]
    places = [math.prod(radix[:i]) for i in range(d + 1)]
    size = places[d] * (d + 1) * batch
    if size >= _CODE_LIMIT:
        raise ValueError("the features span too many lattice cells for 64-bit codes: raise the "
                         "standard deviations or filter fewer images at a time")
    dtype = torch.int32 if size < 2**31 - places[d] * (d + 1) else torch.int64
    codes = torch.empty(d + 1, cells.shape[1], dtype=dtype, device=cells.device)
    images = torch.arange(batch, dtype=dtype, device=cells.device) * (places[d] * (d + 1))
    codes[0] = images.repeat_interleave(pixels)
    for axis in range(d):
        codes[0] += (cells[axis].to(dtype) - (low[axis] - 1)) * places[axis]
    axes = codes.new_tensor([*places[:d], 0])[:, None].expand_as(codes)
    by_rank = torch.empty_like(codes).scatter_(0, rank, axes)
    for c in range(1, d + 1):  # the axis of rank d-c+1 goes to its lower cell
        torch.sub(codes[c - 1] + places[d], by_rank[d - c + 1], out=codes[c])
    return codes, places
