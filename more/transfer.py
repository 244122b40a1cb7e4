"""Copies between the CPU's memory and a device's that neither side waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device; as they are where that is the CPU.

    A GPU takes them from pinned memory: from any other the CPU may have to wait until it has done
    all that was asked of it before. What a loader has pinned is not copied once more.
    """
    if device.type != "cuda":
        return values.to(device)
    if not values.is_pinned():  # PyTorch keeps such memory and hands it out again
        values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
    return values.to(device, non_blocking=True)


class Download:
    """Values of a device tensor on their way to the CPU; only `read` waits, if they are not there.

    Args:
        values: they may change afterwards.
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
