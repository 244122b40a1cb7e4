"""Save memory between forward and backward by computing cheap outputs again.

A linear layer keeps its input for the gradient of its weights. After a norm or an activation that
input can be computed from a tensor that autograd keeps anyway. Then it is not kept, but computed
again in the backward pass: of 16·D numbers that a block of a ViT keeps for each token, 10·D remain.
Both times it is the same call on the same numbers, so results are equal to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers.activations import GELU, GELUTanh, QuickGELU
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

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
