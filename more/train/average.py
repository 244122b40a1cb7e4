"""An exponential moving average of the weights, for evaluation and inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from more.train.checkpoint_state import (
    follow_masters,
    gather_small,
    half_weights,
    is_partitioned,
    masters,
    own_part,
    set_masters,
)


class WeightAverage:
    """Average of a model's weights over its updates, kept in fp32 and cut as ZeRO cuts them.

    After update t it moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)), so that the
    start is soon forgotten. `average_of` chooses what it is made of.

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
        """Put back an average from whole tensors by name.

        Args:
            weights: float32 tensors by the names of the parameters.
            updates: how many updates the average has taken in.
        """
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
        """Write values into what this rank holds of each parameter."""
        for live, value in zip(self._live(), values, strict=True):
            live.copy_(value)
        gather_small(self.engine.optimizer)


class MasterAverage(WeightAverage):
    """The same of the fp32 weights behind 16-bit ones, of which each rank has a part.

    16-bit weights stand still while the fp32 ones behind them move by less than a rounding. In
    place it is what a checkpoint takes for fp32 weights; the network computes with it rounded.
    """

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Put back an average from whole tensors by name.

        Args:
            weights: float32 tensors by the names of the parameters.
            updates: how many updates the average has taken in.
        """
        before, self.updates = [live.clone() for live in self._live()], updates
        set_masters(self.engine, weights)
        for value, kept, live in zip(self.values, before, self._live(), strict=True):
            value.copy_(live)
            live.copy_(kept)

    def _live(self) -> list[Tensor]:
        return masters(self.engine)

    def _put(self, values: list[Tensor]) -> None:
        """Write values into the fp32 weights, and their roundings into the 16-bit ones."""
        for live, value in zip(self._live(), values, strict=True):
            live.copy_(value)
        follow_masters(self.engine)


def average_of(engine: Any, decay: float) -> WeightAverage:
    """An average of the weights that AdamW updates: of the fp32 ones where the network has 16 bits.

    Args:
        engine: DeepSpeed's.
        decay: below 1.

    Returns:
        The average, which begins at the present weights.
    """
    return (MasterAverage if half_weights(engine) else WeightAverage)(engine, decay)
