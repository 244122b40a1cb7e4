"""An exponential moving average of the weights, for evaluation and inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from more.engine.state import is_partitioned, own_part


class WeightAverage:
    """Average of a model's weights over its updates, kept in fp32 and cut as ZeRO cuts them.

    After update t it moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)), so that the
    start is soon forgotten.

    Args:
        engine: DeepSpeed's; buffers are not averaged.
        decay: below 1.
    """

    def __init__(self, engine: Any, decay: float):
        self.engine, self.decay, self.updates = engine, decay, 0
        self.values = [live.float().clone() for live in self._live()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [live.float() for live in self._live()], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for weights; all ranks must take part."""
        before = [live.clone() for live in self._live()]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(before)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Put back an average from whole tensors by name."""
        self.updates = updates
        for value, (name, parameter) in zip(self.values, self.engine.module.named_parameters(),
                                            strict=True):
            whole = weights[name].float()
            value.copy_(own_part(parameter, whole) if is_partitioned(parameter) else whole)

    def _live(self) -> list[Tensor]:
        """What this rank holds of each parameter."""
        return [(parameter.ds_tensor if is_partitioned(parameter) else parameter).data
                for parameter in self.engine.module.parameters()]

    def _put(self, values: list[Tensor]) -> None:
        for live, value in zip(self._live(), values, strict=True):
            live.copy_(value)
        small = getattr(self.engine.optimizer, "persistent_parameters", None)
        if small:  # ZeRO 3 keeps these whole on every rank, beside the cut ones
            small[0].partition(small, has_been_updated=False)
            small[0].all_gather(small)
