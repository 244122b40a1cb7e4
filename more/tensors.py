"""Helpers for tensors that the whole package uses.

In reading order: constants that are made once, masks of boxes, copies that do not wait, sums in
float32, and counts that ranks share.

Making a constant anew costs a copy to a GPU, or a kernel launch, in every pass. So it is made once
for each device and kept. All users share it: they read it and never write to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

MEAN = (123.675, 116.28, 103.53)  # of the RGB values 0..255 of ImageNet's images
STD = (58.395, 57.12, 57.375)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Some numbers as a tensor that is made once and then kept; it must not be written to.

    Args:
        values: n numbers.
        like: a tensor of the wanted type on the wanted device.

    Returns:
        `[n]`.
    """
    return _constant(tuple(values), like.dtype, like.device)


def counting(number: int, like: Tensor) -> Tensor:
    """0, 1 … `number` - 1 as a tensor that is made once and then kept; it must not be written to.

    Args:
        number: how many.
        like: a tensor on the wanted device.

    Returns:
        int64 `[number]`.
    """
    return _counting(number, like.device)


# Kept tensors also serve passes with gradient, which refuse those made in inference mode.
@lru_cache(maxsize=128)
@torch.inference_mode(mode=False)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _counting(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, device=device)


def box_mask(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels lie inside a box.

    Args:
        box: `[B, 4]` as (y0, y1, x0, x1), ends excluded, in pixels.
        size: (height, width).

    Returns:
        bool `[B, H, W]`.
    """
    height, width = size
    sides = box.unflatten(1, (2, 2, 1))  # of rows and of columns: first, end
    places = counting(max(size), box)
    inside = (places >= sides[:, :, 0]) & (places < sides[:, :, 1])
    return inside[:, 0, :height, None] & inside[:, 1, None, :width]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device without waiting; on the CPU it is returned as it is.

    For a GPU the values go through pinned memory. From other memory, the CPU might have to wait
    until the GPU has finished all its earlier work. Tensors that are pinned already are not copied
    once more.

    Args:
        values: a tensor in the CPU's memory.
        device: where to.

    Returns:
        The values on `device`.
    """
    if device.type != "cuda":
        return values.to(device)
    if not values.is_pinned():  # PyTorch keeps such memory and hands it out again
        values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
    return values.to(device, non_blocking=True)


class Download:
    """A copy of a device tensor to the CPU that runs in the background; only `read` waits for it.

    Args:
        values: the tensor; it may change afterwards.
    """

    def __init__(self, values: Tensor):
        self.arrived: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self.values = values.detach().clone()
            return
        self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self.values.copy_(values.detach(), non_blocking=True)
        self.arrived = torch.cuda.Event()
        self.arrived.record()

    def read(self) -> list:
        """The values as Python numbers, nested as the tensor is."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


EPS = 1e-8  # least length that a vector is divided by, as in F.normalize(eps=EPS)

# Sums and similarities are computed in float32, whatever the network runs in.


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Leave autocast and hand the tensors out in float32 (float64 stays float64)."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def full(x: Tensor) -> Tensor:
    """16-bit tensors as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# Counts of a pass and rank, to their mean over all passes and ranks; or that mean, where known.
Reduce = Callable[[Tensor], Tensor] | Tensor


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
