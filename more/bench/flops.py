"""Floating-point operations of a training step, counted without running it, and what the machine
can do of them.

Matrix products, convolutions and attention count, 2 operations a multiplication with addition, the
recomputation inside attention's and checkpointing's backward left out as usual; norms, activations
and the losses' element-wise work do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from more.config.schema import Config
from more.method.make_network import make_network
from more.plan.live_bytes import without_memory
from more.train.cams import view_sizes

GEMM = {"cpu": (2048, 1024, 1024), "cuda": (8192, 8192, 8192)}  # rows, inner side, columns


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[-2] * (width + value.shape[-1])


def _attention_backward(upstream: Any, query: Any, key: Any, value: Any, *rest: Any,
                        **options: Any) -> int:
    return 2 * _attention(query, key, value)  # dQ, dK, dV and d(scores)


class FlopCount(TorchDispatchMode):
    """Counts operations while it is entered.

    torch's own FlopCounterMode follows modules with hooks that fail where a module takes part under
    `no_grad` with inputs that require gradients, and it lacks the CPU's fused attention.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        aten = torch.ops.aten
        self.own = {
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        result, packet = func(*args, **(kwargs or {})), func._overloadpacket
        if packet in self.own:
            self.total += self.own[packet](*args, **(kwargs or {}))
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def step_flops(config: Config, images: int) -> dict[str, int]:
    """Operations of an update's passes over so many images, by part.

    Args:
        config: settings; the network is made of tensors without memory.
        images: in one pass.

    Returns:
        "forward", "backward" (what it adds, twice the forward where nothing is frozen) and "cam"
        (the views besides the training forward).

    Raises:
        UserError: as `make_network`.
    """
    crop, count = config.data.crop, FlopCount()
    with torch.device("meta"):
        skeleton = make_network(config, load_weights=False)
    skeleton.encoder.set_grad_checkpointing(False)  # work done twice is not more work
    with FakeTensorMode(), count:
        network = without_memory(skeleton).train()
        output = network(torch.zeros(images, 3, crop, crop))
        forward, count.total = count.total, 0
        sum(value.sum() for value in output if value.requires_grad).backward()
        backward, count.total = count.total, 0
        with torch.no_grad():
            for (height, width), views in view_sizes(config, network.encoder.patch_size):
                network(torch.zeros(views * images, 3, height, width), mode="cam")
    return {"forward": forward, "backward": backward, "cam": count.total}


def gemm_peak(device: torch.device, dtype: torch.dtype = torch.float32, rounds: int = 40) -> float:
    """Operations a second of the best of some large matrix products."""
    rows, inner, columns = GEMM[device.type]
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / min(_seconds(lambda: a @ b, device) for _ in range(rounds))


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
