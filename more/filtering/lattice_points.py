"""Where feature vectors lie in the permutohedral lattice, and the numbers that name its points.

Nothing here asks a GPU for a value: what depends on the range of the features is computed beside
them, and `span` checks the range where it is known.

Shape letters: P feature vectors (the pixels of all images, one image after another), d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from more.tensors import constant

_CODE_LIMIT = 2**62


class Codes(NamedTuple):
    """Numbers of lattice points, see `encode`."""

    codes: Tensor
    """[d+1, P]."""
    axes: Tensor
    """[d+1]: what one cell more along each axis adds to a code."""
    bounds: Tensor
    """[2, d] int64: lowest and highest cell along the first d axes."""


def enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each feature vector lies in the lattice.

    Args:
        features: [d, P], an axis after the other.

    Returns:
        cells [d+1, P] whole numbers: (d+1)·cells is the corner of remainder zero of the enclosing
        simplex; last [d+1, P] int64: of the corners 0..d the last one that has an axis in its own
        cell, those after it have it one cell lower (the axis of the smallest remainder goes first);
        weights [d+1, P] of the d+1 corners, barycentric, adding up to one.
    """
    d = features.shape[0]
    elevated = _elevate(features)
    cells = torch.round(elevated * (1.0 / (d + 1)))  # half to even
    remainder = torch.sub(elevated, cells, alpha=d + 1)
    # The number of smaller remainders; of equal ones that of the earlier axis counts as larger.
    mine = remainder[:, None]
    less, more = mine > remainder, mine >= remainder
    later = constant([j > i for i in range(d + 1) for j in range(d + 1)], less)
    last = torch.where(later.view(d + 1, d + 1, 1), more, less).sum(1) - cells.sum(0)
    turns = torch.div(last, d + 1, rounding_mode="floor")  # back onto zero sum
    cells, last = cells + turns, torch.sub(last, turns, alpha=d + 1).long()
    remainder = torch.sub(elevated, cells, alpha=d + 1).mul_(1.0 / (d + 1))
    rising = torch.empty_like(remainder).scatter_(0, last, remainder)
    return cells, last, rising - torch.cat([rising[-1:] - 1.0, rising[:-1]])


def _elevate(features: Tensor) -> Tensor:
    """[d, P] into the hyperplane of zero sum in d+1 dimensions, scaled so that blur is unit.

    The steps and their order are those of the fast CRF, digit by digit: a pixel on the border of
    two simplices falls into the same one, and so touches the same points.
    """
    d = features.shape[0]
    scales = [math.sqrt(2 / 3) * (d + 1) / math.sqrt(axis * (axis + 1)) for axis in range(1, d + 1)]
    scaled = features * constant(scales, features)[:, None]
    elevated = features.new_zeros(d + 1, features.shape[1])
    for axis in range(d, 0, -1):  # first the sums of all axes after each
        torch.add(elevated[axis], scaled[axis - 1], out=elevated[axis - 1])
    elevated[1:] += scaled * constant([-axis for axis in range(1, d + 1)], features)[:, None]
    return elevated


def encode(cells: Tensor, last: Tensor, batch: int) -> Codes:
    """Mixed-radix codes of (image, lattice point) of the d+1 corners of each pixel's simplex.

    Corner c has the coordinates c + (d+1)·k_i with k_i = cells_i - [c > last_i]: all of them leave
    the remainder c, the class of the point. Its code has the digits (image, c, k_1 … k_d); the last
    coordinate follows from the zero sum. Neighbours have the digits k_i - 1 to k_i + 1, so one
    spare value a digit keeps a neighbour's code from being that of another point.

    Args:
        cells, last: [d+1, P] as from `enclosing_simplex`, P = B·N.
        batch: B.

    Returns:
        Codes; on a CPU int32 where they fit (sorting is twice as fast), elsewhere int64. They are
        those of the points only where `span` accepts the bounds.
    """
    d = cells.shape[0] - 1
    bounds = torch.stack(torch.aminmax(cells[:d], dim=1)).long()
    one, classes, none = (constant([n], bounds) for n in (1, d + 1, 0))
    places = torch.cat([one, bounds[1] - bounds[0] + 3, classes]).cumprod(0)
    axes = torch.cat([places[:d], none])
    if not cells.is_cuda and span(bounds.tolist(), batch)[-1] < 2**31:
        places, axes = places.int(), axes.int()
    lowest = ((cells[:d] - bounds[0][:, None]).to(axes.dtype) * axes[:d, None]) \
        .sum(0, dtype=axes.dtype)
    images = torch.arange(batch, dtype=axes.dtype, device=cells.device)[:, None]
    lowest = torch.addcmul(lowest.view(batch, -1), images, places[d + 1]).view(1, -1)
    falling = torch.empty_like(last, dtype=axes.dtype) \
        .scatter_(0, last, axes[:, None].expand_as(last))
    codes = torch.cat([lowest, places[d] - falling[:d]]).cumsum(0, dtype=axes.dtype)
    return Codes(codes, axes, bounds)


def span(bounds: Sequence[Sequence[int]], batch: int) -> list[int]:
    """What one more adds to a code, by digit: the d cells, the class and the image; and at the end
    a number that codes and those of neighbours stay below.

    Args:
        bounds: of `Codes`, as numbers.
        batch: B.

    Returns:
        One number a digit, and that limit.

    Raises:
        ValueError: codes do not fit in 62 bits.
    """
    radix = [high - low + 3 for low, high in zip(*bounds, strict=True)]
    radix += [len(radix) + 1, batch + 1]
    places = [math.prod(radix[:i]) for i in range(len(radix) + 1)]
    if places[-1] >= _CODE_LIMIT:
        raise ValueError("the features span too many lattice cells for 64-bit codes: raise the "
                         "standard deviations or filter fewer images at a time")
    return places
