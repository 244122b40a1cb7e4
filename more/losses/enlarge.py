"""Bilinear resize whose gradient is two matrix products."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.localization.maps import resize


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` of `[B, C, h, w]`, bit by bit; for sizes much larger than h and w.

    PyTorch adds the gradients of all pixels one after another (on a GPU in any order). As products
    with the weights of rows and of columns they cost half on a CPU, lose fewer digits and are
    the same every time.
    """
    return x if tuple(x.shape[-2:]) == tuple(size) else _Enlarge.apply(x, tuple(size))


class _Enlarge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size) -> Tensor:
        ctx.grid = tuple(x.shape[-2:])
        return resize(x, size)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor, None]:
        rows, columns = (_weights(small, large, upstream.dtype, upstream.device)
                         for small, large in zip(ctx.grid, upstream.shape[-2:], strict=True))
        return rows.T @ (upstream @ columns), None


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _weights(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What every one of `small` values gives to `large` ones in between, `[large, small]`.

    Kept, since every backward pass asks for the same ones: to be read only.
    """
    ones = torch.eye(small, dtype=dtype, device=device)
    return F.interpolate(ones[None], size=large, mode="linear", align_corners=False)[0].T
