"""Learning rate: linear warm-up, then polynomial decay counted from the first update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR


def poly_factor(update: int, warmup: int, total: int, ratio: float, power: float) -> float:
    """Factor on the base rate for update number `update` (from 0).

    Warm-up: `1 - (1 - i/warmup)(1 - ratio)`; then `(1 - i/total)^power`, counted from 0 and not
    from the end of the warm-up, so the rate drops there; from `total` on it stays as in the last
    update. Same as the released schedule.
    """
    if update < warmup:
        return 1 - (1 - update / warmup) * (1 - ratio)
    return (1 - min(update, total - 1) / total) ** power


def make_scheduler(optimizer: torch.optim.Optimizer, warmup: int, total: int, ratio: float,
                   power: float, frozen: int = 0) -> LambdaLR:
    """A scheduler for all parameter groups.

    Groups with `"freezable": True` get rate 0 during the first `frozen` updates (AdamW then neither
    moves nor decays them, and they still take part in every step).
    """
    def factor(freezable: bool) -> Callable[[int], float]:
        def at(update: int) -> float:
            if freezable and update < frozen:
                return 0.0
            return poly_factor(update, warmup, total, ratio, power)
        return at

    return LambdaLR(optimizer, [factor(group.get("freezable", False))
                                for group in optimizer.param_groups])
