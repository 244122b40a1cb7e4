"""Updates of the weights: none when loss or gradient is not finite, and the learning rate.

The rate warms up linearly and then decays as a polynomial, counted from the first update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


def poisoned(total: Tensor, anchor: Tensor) -> Tensor:
    """The loss; where it is not finite, with gradients that are not finite either.

    A NaN may reach the loss over a path without gradient; then the update would go through.

    Args:
        total: the loss, a scalar.
        anchor: anything finite that depends on the weights.

    Returns:
        A scalar to differentiate.
    """
    spoil = torch.where(torch.isfinite(total.detach()), 0.0, float("nan"))
    return total + spoil * anchor.sum()


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that makes no update when the gradient is not finite, as ZeRO 1 to 3 do by themselves.

    For ZeRO 0, where every rank holds the whole reduced gradient, so that all decide alike.
    DeepSpeed reads `overflow` after each step and then leaves the schedule where it is.

    Attributes:
        overflow: whether the last step was left out.
        norm: norm of the last gradient, before clipping, as ZeRO 1 to 3 report it.
        clip: largest norm; a longer gradient is shortened to it. 0 = off.
    """

    overflow = False
    clip = 0.0
    norm: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update, or none.

        Args:
            closure: as PyTorch's; DeepSpeed gives none.
        """
        grads = [parameter.grad for group in self.param_groups for parameter in group["params"]
                 if parameter.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(grads)
        # The one value of an update that a GPU is waited for: by it DeepSpeed decides, on return,
        # whether the schedule goes on. ZeRO 1 to 3 read it as well.
        self.overflow = not bool(torch.isfinite(self.norm))
        if not self.overflow:
            if self.clip > 0:
                shorten = (self.clip / (self.norm + 1e-6)).clamp(max=1.0)  # as DeepSpeed does
                torch._foreach_mul_(grads, shorten)
            super().step(closure)


def poly_factor(update: int, warmup: int, total: int, ratio: float, power: float) -> float:
    """Factor on the base rate for update number `update` (from 0).

    Warm-up: `1 - (1 - i/warmup)(1 - ratio)`; then `(1 - i/total)^power`, counted from 0 and not
    from the end of the warm-up, so the rate drops there; from `total` on it stays as in the last
    update. Same as the released schedule.

    Args:
        update: its number, from 0.
        warmup: updates of the warm-up.
        total: updates of the run.
        ratio: factor of the first update.
        power: of the decay.

    Returns:
        0..1.
    """
    if update < warmup:
        return 1 - (1 - update / warmup) * (1 - ratio)
    return (1 - min(update, total - 1) / total) ** power


def make_scheduler(optimizer: torch.optim.Optimizer, warmup: int, total: int, ratio: float,
                   power: float, frozen: int = 0) -> LambdaLR:
    """A scheduler for all parameter groups.

    Groups with `"freezable": True` get rate 0 during the first `frozen` updates (AdamW then neither
    moves nor decays them, and they still take part in every step).

    Args:
        optimizer: its rates are the base rates.
        warmup: updates of the warm-up.
        total: updates of the run.
        ratio: factor of the first update.
        power: of the decay.
        frozen: updates in which freezable groups stand still.

    Returns:
        The scheduler.
    """
    def factor(freezable: bool) -> Callable[[int], float]:
        """The factor of a group, by the number of the update."""
        def at(update: int) -> float:
            """The factor in one update."""
            if freezable and update < frozen:
                return 0.0
            return poly_factor(update, warmup, total, ratio, power)
        return at

    return LambdaLR(optimizer, [factor(group.get("freezable", False))
                                for group in optimizer.param_groups])
