"""The ranks of a training: their process group, and what they agree on.

A training is one process (`python -m more train`) or several, under torchrun, deepspeed or srun.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from more.config.schema import Config
from more.device import has_bf16, keep_freed_memory, local_device, usable_cores
from more.train.launcher import fill_environment, not_met


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over ranks, the same on each.

        Args:
            tensor: of one shape on all ranks; stays as it is.

        Returns:
            The sum.
        """
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise mean over ranks (counts that normalise a loss).

        Args:
            tensor: of one shape on all ranks; stays as it is.

        Returns:
            The mean, without gradient.
        """
        return self.sum(tensor.detach()) / self.size if self.size > 1 else tensor

    def agree(self, value: Any) -> Any:
        """Rank 0's value on every rank.

        Args:
            value: of rank 0; what other ranks give is not looked at.

        Returns:
            The value.
        """
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank.

        Args:
            value: of this rank.

        Returns:
            A list as long as there are ranks.
        """
        box: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(box, value)
        return box


ALONE = World(0, 1, 0, 1, torch.device("cpu"))
"""A process without peers."""

MOST_WORKERS = 8  # of a rank's loader, where the settings leave it open


def settled_here(config: Config, device: torch.device, local_size: int,
                 world: World | None = None) -> Config:
    """The settings with what they leave to the machine: `precision=auto`, `data.workers=-1`.

    Args:
        config: settings.
        device: of this rank.
        local_size: ranks on this machine, which share its cores.
        world: ranks, which take the same precision; None asks nobody.

    Returns:
        Settings without such values.
    """
    precision, workers = config.precision, config.data.workers
    if precision == "auto":
        own = has_bf16(device)
        everyone = [own] if world is None else world.gather(own)
        precision = "bf16" if all(everyone) else "fp32"
    if workers == -1:
        workers = min(max(usable_cores() // local_size - 1, 1), MOST_WORKERS)
    return replace(config, precision=precision, data=replace(config.data, workers=workers))


def setup(timeout_minutes: float = 10, threads: int = 0) -> World:
    """Join the process group (gloo on CPU, nccl on CUDA) and pick this rank's device.

    Args:
        timeout_minutes: longest wait for another rank in a collective.
        threads: CPU threads of this process; 0 = cores divided by the ranks of this machine.

    Returns:
        This rank among its peers.

    Raises:
        UserError: the ranks do not find each other (names address and port).
    """
    fill_environment()
    device = local_device()
    cuda = device.type == "cuda"
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        keep_freed_memory()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // local_size))
    deepspeed = import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(device)
    try:
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False,
                                   timeout=timedelta(minutes=timeout_minutes))
    except dist.DistError as error:
        raise not_met(str(error), timeout_minutes) from error
    return World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)


def teardown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int, world: World) -> None:
    """End this process, once everything is written and the group is left.

    With several ranks at once, past the interpreter's own end: there threads of the backends may
    still be running, and abort a process whose work is done ("terminate called without an active
    exception").

    Args:
        code: exit code.
        world: ranks.
    """
    teardown()
    if world.size == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without the C++ build that its CPU backend starts but we never use.

    Returns:
        The module `deepspeed`.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ.setdefault("DS_LOG_LEVEL", "WARNING")
    import deepspeed

    # By its full name: as an attribute of deepspeed.comm, "torch" is PyTorch itself.
    backend = importlib.import_module("deepspeed.comm.torch")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if local_device().type != "cuda" and hasattr(backend, "build_shm_op"):
        backend.build_shm_op = lambda: None
    # What trains bf16 weights in stage 1 prints the memory that is used, and resets its peak.
    engine = importlib.import_module("deepspeed.runtime.bf16_optimizer")
    if hasattr(engine, "see_memory_usage"):
        engine.see_memory_usage = lambda *_, **__: None
    return deepspeed
