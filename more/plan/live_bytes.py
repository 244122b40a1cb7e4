"""Bytes of tensors, followed operation by operation, also of tensors without memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make while it is entered; what an operation needs
    inside itself is not seen.

    Attributes:
        now: bytes of those that still live.
        peak: the most there were at once since the start or `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """The peak begins again at what lives now."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a new storage until it goes."""
        size, key = storage.nbytes(), storage._cdata
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known.add(key)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        """A storage is gone."""
        self.now -= size
        self._known.discard(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors in nested lists, tuples and dictionaries."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree)
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def without_memory(network: nn.Module) -> nn.Module:
    """Put weights of the current FakeTensorMode in place of those of a network on "meta".

    Args:
        network: made on the device "meta"; changed in place.

    Returns:
        The network.
    """
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network
