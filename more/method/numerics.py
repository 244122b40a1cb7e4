"""Sums and similarities in float32, whatever precision the network runs in, and shared counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Leave autocast and hand the tensors out in float32 (float64 stays float64)."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


EPS = 1e-8  # least length that a vector is divided by, as in F.normalize(eps=EPS)

# Counts of this pass and rank to their mean over all passes and ranks; or that mean, where it is
# known.
Reduce = Callable[[Tensor], Tensor] | Tensor


def full(x: Tensor) -> Tensor:
    """16-bit tensors as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def counts(values: Callable[[], list[Tensor]], reduce: Reduce | None) -> Tensor:
    """Counts of a pass stacked to `[n]`, averaged over ranks and passes where `reduce` is given.

    The sum of one pass over the mean count, averaged over ranks and passes, is the sum of the
    global batch over its count: that keeps losses independent of how a batch is divided.

    Args:
        values: makes the counts; not called where `reduce` is the mean itself.
        reduce: see `Reduce`; None: one rank with one pass.
    """
    if isinstance(reduce, Tensor):
        return reduce
    stacked = torch.stack(values()).detach()
    return stacked if reduce is None else reduce(stacked)
