"""Loss terms that compute their gradient in the forward pass, to save memory; and `enlarge`.

The decoder gives one vector of logits for each patch, and its terms compare them with labels at
full size. Plain autograd would keep full-size logits, softmax and log-softmax until the backward
pass. Here each term is computed for some images at a time, is differentiated at once, and only
the gradient for the patches' logits, which is far smaller, is kept. `enlarge` is the resize from
patches to pixels. B batch, K channels of the decoder, h×w patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.method.cam import resize

# The logits `[b, K, h, w]` of some images, and which of the batch these are, to their summand.
Summand = Callable[[Tensor, slice], Tensor]
# Bytes of full-size logits at a time, at least an image: on a CPU one large image after another is
# faster than all at once. On a GPU they are as many as there is room for; this, where its driver
# does not say how much that is.
BYTES = {"cpu": 2**22, "cuda": 2**31}
SHARE = 1 / 2  # of a GPU's free memory
LIVE = 4  # tensors of the size of these logits, most of the time less, that live at once
_CHOSEN: dict[tuple[Any, ...], int] = {}  # the first pass decides for all of its shape


def images_at_a_time(logits: Tensor, size: tuple[int, int]) -> int:
    """Images whose logits `[B, K, h, w]` are made `size` (height, width) large together.

    On a GPU a batch is divided into equal parts, as few as fit into half of the free memory. (With
    81 classes and 448 pixels an image takes 4 × 65 MB, eight take 2.1 GB.) The first batch of a
    shape decides for all later ones of that shape, since sums over other parts would differ in
    their last digits.

    Args:
        logits: `[B, K, h, w]`.
        size: height and width that they are enlarged to.
    """
    one = logits.shape[1] * size[0] * size[1] * logits.element_size()
    if logits.device.type != "cuda":
        return max(1, BYTES["cpu"] // one)
    key = (logits.device, logits.dtype, tuple(logits.shape), tuple(size))
    if key not in _CHOSEN:
        most = max(1, _room(logits.device) // one)
        _CHOSEN[key] = math.ceil(len(logits) / math.ceil(len(logits) / most))
    return _CHOSEN[key]


def _room(device: torch.device) -> int:
    """Bytes of full-size logits that a GPU has room for now."""
    if not torch.cuda.is_available():  # it is only claimed, in a test
        return BYTES["cuda"]
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch holds and does not use is free too.
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (free + held)) // LIVE


def with_forward_gradients(
    logits: Tensor, summands: Mapping[str, Summand], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Terms that are sums over images, with gradients for the logits alone.

    Args:
        logits: `[B, K, h, w]`.
        summands: of the terms, by name; no gradient reaches what they take besides the logits.
        size: (height, width) that they resize the logits to.

    Returns:
        Scalars by the names of `summands`. They can be differentiated once.
    """
    gradient = torch.is_grad_enabled() and logits.requires_grad
    step = images_at_a_time(logits, size)
    values = _ForwardGradients.apply(logits, tuple(summands.values()), step, gradient)
    return dict(zip(summands, values, strict=True))


class _ForwardGradients(torch.autograd.Function):
    """Values of all terms; keeps a gradient as large as the logits for each of them."""

    @staticmethod
    def forward(ctx, logits, summands, step, gradient) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # None: the term is not in the total
        values, slopes = [], []
        for summand in summands:
            found, parts = [], []
            for start in range(0, len(logits), step):
                rows = slice(start, min(start + step, len(logits)))
                leaf = logits[rows].detach().requires_grad_(gradient)
                with torch.set_grad_enabled(gradient):
                    part = summand(leaf, rows)
                if gradient:
                    found += torch.autograd.grad(part, leaf)
                parts.append(part.detach())
            values.append(torch.stack(parts).sum() if len(parts) > 1 else parts[0])
            slopes += [torch.cat(found) if len(found) > 1 else found[0]] if gradient else []
        ctx.save_for_backward(*slopes)
        return tuple(values)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream) -> tuple[Tensor | None, None, None, None]:
        """Gradient for the logits only."""
        parts = [factor * slope for factor, slope in zip(upstream, ctx.saved_tensors, strict=True)
                 if factor is not None]
        return reduce(torch.add, parts) if parts else None, None, None, None


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
