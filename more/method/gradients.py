"""Memory saved between the forward and the backward pass.

1. Loss terms that compute their gradient in the forward pass. The decoder gives one vector of
   logits for each patch, and its terms compare them with labels at full size. Plain autograd would
   keep full-size logits, softmax and log-softmax until the backward pass. Here each term is
   computed for some images at a time, is differentiated at once, and only the gradient for the
   patches' logits, which is far smaller, is kept.
2. `enlarge`, the resize from patches to pixels, whose backward pass is two matrix products.
3. `keep_less`: cheap outputs of a block, computed again in the backward pass.

B batch, K channels of the decoder, h×w patches.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import GELU, GELUTanh, QuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

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
        """Values of the terms `summands`, for `step` images at a time."""
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
        """`x` resized."""
        ctx.grid = tuple(x.shape[-2:])
        return resize(x, size)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor, None]:
        """Gradient for the small map, by the transposed weights of rows and columns."""
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


# Cheap outputs that are computed again in the backward pass. A linear layer keeps its input for
# the gradient of its weights. After a norm or an activation that input can be computed from a
# tensor that autograd keeps anyway. Then it is not kept: of 16·D numbers that a block of a ViT
# keeps for each token, 10·D remain. Both times it is the same call on the same numbers, so
# results are equal to the bit.

CHEAP = (nn.LayerNorm, nn.GELU, nn.SiLU, GELU, GELUTanh, QuickGELU)
"""Modules whose outputs are made again: no random numbers, little arithmetic."""


@contextmanager
def keep_less(block: nn.Module) -> Iterator[None]:
    """Within it, one forward of `block` keeps no outputs of its `CHEAP` modules for backward.

    Only where the module's input is kept anyway; everything else is kept as always. Backward
    raises RuntimeError where a kept tensor was modified in place since, as autograd does. The
    module itself is called again, so that weights spread by ZeRO 3 are gathered for it.
    """
    watch = _Watch()
    hooks = [module.register_forward_hook(watch.after) for module in block.modules()
             if isinstance(module, CHEAP)]
    hooks += [module.register_forward_pre_hook(watch.before) for module in block.modules()
              if isinstance(module, nn.Linear)]
    try:
        with saved_tensors_hooks(watch.pack, _unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Recipe:
    """How to make an output of a module again; `dtype`, `size`, `stride` are the output's."""

    module: nn.Module
    source: Tensor  # the module's input, without its graph
    version: int
    autocast: tuple[str, bool, torch.dtype]  # device, whether on, to what
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]

    def make(self) -> Tensor:
        """The output, computed again."""
        _check(self.source, self.version)
        device, enabled, dtype = self.autocast
        # A count that ZeRO 3 restarts in a module's forward and still needs in its backward.
        count = vars(self.module).get("ds_grads_remaining")
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
            output = self.module(self.source).to(self.dtype)
        if count is not None:
            self.module.ds_grads_remaining = count
        if (output.size(), output.stride()) != (self.size, self.stride):
            raise RuntimeError(f"{type(self.module).__name__} gives another layout when it is run "
                               "again; set model.recompute_cheap=False")
        return output


class _Watch:
    """Follows one forward of a block: what is saved, and which outputs can be made again."""

    def __init__(self) -> None:
        self.made: dict[int, tuple[weakref.ref, int, _Recipe]] = {}
        self.saved: set[int] = set()

    def after(self, module: nn.Module, args: tuple, output: Any) -> None:
        """A cheap module was run."""
        if not (args and isinstance(output, Tensor) and output.requires_grad):
            return
        source = args[0]
        # By now autograd has saved what it needs of the module: usually its input.
        if _key(source) in self.saved:
            self._note(output, _Recipe(module, source.detach(), source._version,
                                       _autocast(output), output.dtype, output.size(),
                                       output.stride()))

    def before(self, linear: nn.Module, args: tuple) -> tuple | None:
        """A linear layer is run: cast its input as autocast is about to, for `pack` to know it."""
        recipe = self._find(args[0]) if args else None
        if recipe is None or (args[0].size(), args[0].stride()) != (recipe.size, recipe.stride):
            return None
        _, enabled, dtype = _autocast(args[0])
        if not enabled or args[0].dtype != torch.float32 or dtype == torch.float32:
            return None
        cast = args[0].to(dtype)
        self._note(cast, replace(recipe, dtype=dtype, stride=cast.stride()))
        return cast, *args[1:]

    def pack(self, tensor: Tensor) -> tuple:
        """What stands for a tensor that autograd saves: recipe and view, or tensor and version."""
        recipe = self._find(tensor)
        if recipe is not None:
            return recipe, (tensor.size(), tensor.stride(), tensor.storage_offset())
        self.saved.add(_key(tensor))
        # An output that is saved by its own operation would hold its graph, and that the output.
        return tensor if tensor.is_leaf else tensor.detach(), tensor._version

    def _note(self, output: Tensor, recipe: _Recipe) -> None:
        if output.storage_offset() == 0:
            # Weak: what nobody needs goes, and its address may come back as another tensor's.
            storage = weakref.ref(output.untyped_storage())
            self.made[_key(output)] = (storage, output._version, recipe)

    def _find(self, tensor: Tensor) -> _Recipe | None:
        storage, version, recipe = self.made.get(_key(tensor), (None, 0, None))
        if storage is None or storage() is not tensor.untyped_storage():
            return None
        return recipe if (version, recipe.dtype) == (tensor._version, tensor.dtype) else None


def _unpack(packed: tuple) -> Tensor:
    what, how = packed
    if isinstance(what, _Recipe):
        return what.make().as_strided(*how)
    _check(what, how)
    return what


def _check(tensor: Tensor, version: int) -> None:
    """With hooks, autograd no longer looks for changes itself."""
    if tensor._version != version:
        raise RuntimeError(f"a tensor {list(tensor.shape)} that backward needs was modified by an "
                           f"inplace operation: it is at version {tensor._version}, saved was "
                           f"version {version}")


def _autocast(tensor: Tensor) -> tuple[str, bool, torch.dtype]:
    device = tensor.device.type
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
