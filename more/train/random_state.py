"""The random state of every rank as tensors, for checkpoints."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from more.device import local_device
from more.train.distributed import World


def seed(number: int, rank: int) -> None:
    """Start every generator of this process from the run's seed; a rank has its own.

    Args:
        number: the run's seed.
        rank: of this process.
    """
    torch.manual_seed(number + rank)
    np.random.seed((number + rank) % 2**32)
    random.seed(number + rank)


def own_state() -> dict[str, Tensor]:
    """Random state of this process: torch (CPU, CUDA), NumPy's old generator and Python's."""
    version, python, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state()
    state = {"torch": torch.get_rng_state(),
             "python": torch.tensor([version, *python], dtype=torch.int64),
             "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
             "numpy": torch.from_numpy(keys.astype(np.int64)),
             "numpy_more": torch.tensor([place, has_gauss, cached], dtype=torch.float64)}
    if local_device().type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_own_state(state: dict[str, Tensor]) -> None:
    """Put back what `own_state` returned.

    Args:
        state: tensors by name.
    """
    torch.set_rng_state(state["torch"])
    version, *python = state["python"].tolist()
    has_one, gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(python), gauss if has_one else None))
    place, has_gauss, cached = state["numpy_more"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(place),
                         int(has_gauss), cached))
    if "cuda" in state and local_device().type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])


def gather(world: World) -> dict[str, Tensor]:
    """The random states of all ranks; all of them call it.

    Args:
        world: ranks.

    Returns:
        Tensors by `RANK/NAME`.
    """
    return {f"{rank}/{name}": value for rank, state in enumerate(world.gather(own_state()))
            for name, value in state.items()}


def restore(states: dict[str, Tensor], world: World) -> None:
    """Put back this rank's state; a rank that the earlier run did not have goes on from its own
    seed.

    Args:
        states: from `gather`.
        world: ranks.
    """
    own = {name.split("/", 1)[1]: value for name, value in states.items()
           if name.split("/", 1)[0] == str(world.rank)}
    if own:
        set_own_state(own)
