"""Small tensors of values that never change, made once for a device and kept there.

Made anew they cost a copy to a GPU, or a launch, in every pass. All users share them: they are read
and never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Some numbers, `[n]`, of the type and on the device of another tensor; to be read only."""
    return _constant(tuple(values), like.dtype, like.device)


def counting(number: int, like: Tensor) -> Tensor:
    """0, 1 … `number` - 1 as int64 on the device of another tensor; to be read only."""
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
