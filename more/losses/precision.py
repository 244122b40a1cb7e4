"""Sums and similarities are made in float32, whatever precision the network runs in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-8  # least length that a vector is divided by, as in F.normalize(eps=EPS)

Reduce = Callable[[Tensor], Tensor]


def full(x: Tensor) -> Tensor:
    """16-bit tensors as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def counts(values: list[Tensor], reduce: Reduce | None) -> Tensor:
    """Counts of this rank stacked to `[n]`, averaged over ranks where `reduce` is given.

    A sum of this rank over the mean count, averaged over ranks, is the sum of the global batch
    over its count: that keeps losses independent of how a batch is divided.
    """
    stacked = torch.stack(values).detach()
    return stacked if reduce is None else reduce(stacked)
