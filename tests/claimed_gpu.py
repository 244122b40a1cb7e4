"""A GPU that is only claimed: tensors on it say "cuda:0" and compute on the CPU, with real values.

Where a GPU would refuse an operation because one of its tensors lies on the CPU, this one refuses
it too. What the program under test does on a GPU can so be run, and its faults be found, without
one. (FakeTensor cannot: the labels of an update depend on values, which it does not have.)

    with claimed_gpu():
        loss = step(put_on(network), World(0, 1, 0, 1, GPU))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("cuda", 0)
# PyTorch knows how to differentiate tensors of this device without a GPU; nobody else uses it here.
INSIDE = torch.device("meta")
MAY_MIX = ("aten::_to_copy", "aten::copy_")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")


class WrongDevice(RuntimeError):
    """An operation got tensors of the GPU and of the CPU."""


class OnGpu(Tensor):
    """A tensor that says it lies on the GPU; `inside` has its values."""

    @staticmethod
    def __new__(cls, inside: Tensor) -> OnGpu:
        """Wrap a CPU tensor without gradient."""
        made = Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(),
            dtype=inside.dtype, layout=inside.layout, device=INSIDE)
        made.inside = inside
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnGpu({self.inside!r})"

    def tolist(self) -> list:
        """Python numbers."""
        return self.cpu().tolist()

    def numpy(self) -> None:
        """As on a GPU: not without a copy to the CPU."""
        raise WrongDevice("numpy() of a tensor on cuda:0")

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """A tensor of other values beside this one."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": GPU, **options})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        """What is called on such tensors, in the backward pass too."""
        return _run(func, args, kwargs or {})


def put_on(network: nn.Module) -> nn.Module:
    """The same module with its parameters and buffers on the claimed GPU."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(OnGpu(value.detach()),
                                                        value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = OnGpu(value)
    return network


@contextmanager
def claimed_gpu(bf16: bool = True) -> Iterator[Counts]:
    """Inside, "cuda" is the claimed GPU for tensors that are made or moved; `bf16`: it has that."""
    before = torch.cuda._lazy_init, torch.cuda.is_bf16_supported
    torch.cuda.is_bf16_supported = lambda including_emulation=True: bf16 or including_emulation
    torch.cuda._lazy_init = lambda: None  # it would look for a driver
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) then moves visibly
    try:
        with Counts() as counts:
            yield counts
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.cuda._lazy_init, torch.cuda.is_bf16_supported = before


class Counts(TorchDispatchMode):
    """Runs operations on the claimed GPU and counts those that make the CPU wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """One operation."""
        kwargs = kwargs or {}
        if func._schema.name in READS and any(isinstance(a, OnGpu) for a in args):
            self.reads += 1
        return _run(func, args, kwargs)


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    flat, shape = tree_flatten((args, kwargs))
    tensors = [a for a in flat if isinstance(a, Tensor)]
    on_gpu = any(isinstance(a, OnGpu) for a in tensors)
    if on_gpu and func._schema.name not in MAY_MIX:
        for tensor in tensors:
            if not isinstance(tensor, OnGpu) and tensor.dim():
                raise WrongDevice(f"{func} got tensors on cuda:0 and one on the CPU: "
                                  f"{list(tensor.shape)}, {tensor.dtype}")
    wanted = kwargs.get("device")
    to_gpu = on_gpu if wanted is None else torch.device(wanted).type != "cpu"
    inner_args, inner_kwargs = tree_unflatten([_inside(a) for a in flat], shape)
    inner_kwargs.pop("pin_memory", None)
    result = func(*inner_args, **inner_kwargs)
    if not to_gpu:
        return result
    written = {id(_inside(a)): a for a in tensors}
    return tree_map(lambda r: written.get(id(r)) if id(r) in written else
                    OnGpu(r) if isinstance(r, Tensor) else r, result)


def _inside(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.inside
    return torch.device("cpu") if isinstance(value, torch.device) else value
