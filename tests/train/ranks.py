"""Ranks as threads of this process: for what uses nothing of its peers but `World.sum`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

from more.train.distributed import World


def as_ranks(size: int, job: Callable[[World], Any]) -> list[Any]:
    """What a job gives on each of so many ranks, run side by side."""
    meeting, given = Barrier(size, timeout=60), [None] * size

    class Rank(World):
        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            given[self.rank] = tensor
            meeting.wait()
            total = torch.stack(given).sum(0)
            meeting.wait()  # before another sum begins
            return total

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(job, [Rank(rank, size, rank, size, torch.device("cpu"))
                                   for rank in range(size)]))
