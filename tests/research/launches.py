"""What an update costs apart from arithmetic: operations, casts, waits and copies, counted.

Counted on a claimed GPU (`tests.claimed_gpu`), which runs what a GPU would run. Neither weights nor
width change the counts, so a narrow network of the recipe's depth stands for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.claimed_gpu import READS, OnGpu

# Neither runs anything on a device: memory without values, and answers of the dispatcher.
NO_WORK = {"aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::empty_strided",
           "aten::new_empty", "aten::new_empty_strided", "aten::promote_types",
           "aten::lift_fresh", "aten::resolve_conj", "aten::resolve_neg", "aten::result_type",
           "aten::_local_scalar_dense", "aten::is_same_size"}


class Launches(TorchDispatchMode):
    """Counts what goes to a device inside; views of memory are not counted.

    Attributes:
        operations: by name; casts: those that change the type; waits: by name, where the CPU has to
            wait for the GPU's values; uploads: shapes that were copied from the CPU's memory;
            blocking: those of them that the CPU waits for (not `non_blocking`); bytes: of all
            tensors that were written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[tuple[int, ...]] = Counter()
        self.blocking: Counter[tuple[int, ...]] = Counter()
        self.casts = self.bytes = 0
        self.inside_one = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """One operation."""
        result = func(*args, **(kwargs or {}))
        if not self.inside_one:
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        name, given = func._schema.name, args[0] if args else None
        if name in READS and isinstance(given, OnGpu):
            self.waits[name] += 1
        if name in NO_WORK or _is_view(func):
            return
        made = [part for part in (result if isinstance(result, tuple | list) else [result])
                if isinstance(part, Tensor)]
        if name == "aten::_to_copy":
            self.casts += given.dtype != result.dtype
            if isinstance(given, OnGpu) and not isinstance(result, OnGpu):
                self.waits["copy to the CPU"] += 1
            elif isinstance(result, OnGpu) and not isinstance(given, OnGpu):
                self.uploads[tuple(result.shape)] += 1
                if not kwargs.get("non_blocking"):
                    self.blocking[tuple(result.shape)] += 1
        if name.startswith("aten::_foreach") or any(isinstance(part, OnGpu) for part in
                                                    [given, *made]):
            self.operations[name] += 1
            self.bytes += sum(part.numel() * part.element_size() for part in made)


def _is_view(func: Any) -> bool:
    return any(part.alias_info is not None and not part.alias_info.is_write
               for part in func._schema.returns)


@contextmanager
def fused_attention(count: Launches) -> Iterator[None]:
    """Attention is one operation, as on a GPU, and one in the backward pass.

    (What the claimed GPU computes it with is made of several.)
    """
    plain = F.scaled_dot_product_attention

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, options) -> Tensor:
            ctx.save_for_backward(query, key, value)
            ctx.options = options
            return _one(count, "attention", lambda: plain(query, key, value, **options))

        @staticmethod
        def backward(ctx, upstream) -> tuple[Tensor | None, ...]:
            leaves = [part.detach().requires_grad_() for part in ctx.saved_tensors]

            def slopes() -> tuple[Tensor, ...]:
                with torch.enable_grad():
                    return torch.autograd.grad(plain(*leaves, **ctx.options), leaves, upstream)
            return (*_one(count, "attention's gradient", slopes), None)

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                  **options: Any) -> Tensor:
        return Fused.apply(query, key, value, {"attn_mask": attn_mask, **options})

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _one(count: Launches, name: str, work: Any) -> Any:
    """What `work` returns, counted as one operation."""
    before, count.inside_one = count.inside_one, True
    try:
        result = work()
    finally:
        count.inside_one = before
    if not before:
        count.operations[name] += 1
    return result
