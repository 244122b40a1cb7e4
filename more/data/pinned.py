"""Batches for a GPU in pinned memory, put there by a thread while the batch before is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from more.device import local_device


def pinned_ahead(batches: Iterator[dict[str, Any]],
                 pin: Callable[[Tensor], Tensor] = Tensor.pin_memory) -> Iterator[dict[str, Any]]:
    """The same batches in order, one ahead, with copies of their tensors in pinned memory.

    (A DataLoader's own thread pins what arrives as tensors: neither NumPy's arrays, as which small
    things and tokens arrive here, nor pixels that were left in a ring.)

    Args:
        batches: each may be memory that its iterator uses again for the next one.
        pin: copies a tensor.

    Raises: what `batches` raises, in its place.
    """
    def following() -> dict[str, Any] | None:
        batch = next(batches, None)
        return batch and {name: pin(value) if isinstance(value, Tensor) else value
                          for name, value in batch.items()}

    with ThreadPoolExecutor(1, "pinning", _on_this_device) as thread:
        coming = thread.submit(following)
        while (batch := coming.result()) is not None:
            coming = thread.submit(following)
            yield batch


def _on_this_device() -> None:
    """Else the thread would take up memory of the machine's first GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.set_device(local_device())
