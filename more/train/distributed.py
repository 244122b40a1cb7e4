"""Ranks, device and process group: the one place that chooses them.

Works alone (`python -m more train`), under torchrun, under deepspeed and under srun.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from more.config.schema import Config
from more.device import keep_freed_memory
from more.errors import UserError


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
        """Element-wise sum over ranks, the same on each."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise mean over ranks (counts that normalise a loss)."""
        return self.sum(tensor.detach()) / self.size if self.size > 1 else tensor

    def agree(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        box: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(box, value)
        return box


ALONE = World(0, 1, 0, 1, torch.device("cpu"))
"""A process without peers."""

MOST_WORKERS = 8  # of a rank's loader, where the settings leave it open

# Set by srun alone; SLURM_NTASKS is there in the batch script too, where only one process runs.
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"


def launched_world() -> tuple[int, int]:
    """(rank, world size) from the launcher's environment, without making a group."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", SLURM_TASKS)):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def local_device() -> torch.device:
    """The device of this process among those of its machine, from the launcher's environment.

    DeepSpeed's own variable `DS_ACCELERATOR=cpu` keeps everything off the GPUs.
    """
    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return torch.device("cuda", int(os.environ[name]) % torch.cuda.device_count())
    return torch.device("cuda", 0)


def settled_here(config: Config, device: torch.device, local_size: int,
                 world: World | None = None) -> Config:
    """The settings with what they leave to the machine: `precision=auto`, `data.workers=-1`.

    Args:
        config: settings.
        device: of this rank.
        local_size: ranks on this machine, which share its cores.
        world: ranks, which take the same precision; None asks nobody.
    """
    precision, workers = config.precision, config.data.workers
    if precision == "auto":
        own = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        everyone = [own] if world is None else world.gather(own)
        precision = "bf16" if all(everyone) else "fp32"
    if workers == -1:
        workers = min(max(_cores() // local_size - 1, 1), MOST_WORKERS)
    return replace(config, precision=precision, data=replace(config.data, workers=workers))


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Let matrix products of fp32 numbers round to TF32 (`train.tf32`); nothing on a CPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")


def setup(timeout_minutes: float = 10, threads: int = 0) -> World:
    """Join the process group (gloo on CPU, nccl on CUDA) and pick this rank's device.

    Args:
        timeout_minutes: longest wait for another rank in a collective.
        threads: CPU threads of this process; 0 = cores divided by the ranks of this machine.

    Raises:
        UserError: the ranks do not find each other (names address and port).
    """
    _fill_environment()
    device = local_device()
    cuda = device.type == "cuda"
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        keep_freed_memory()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, _cores() // local_size))
    deepspeed = import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(device)
    try:
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False,
                                   timeout=timedelta(minutes=timeout_minutes))
    except dist.DistError as error:
        raise _not_met(str(error), timeout_minutes) from error
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
    """
    teardown()
    if world.size == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without the C++ build that its CPU backend starts but we never use."""
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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _fill_environment() -> None:
    """The five launcher variables: from SLURM, else a world of one."""
    if "RANK" not in os.environ and int(os.environ.get(SLURM_TASKS, "1")) > 1:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ[SLURM_TASKS]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
        os.environ.setdefault("LOCAL_WORLD_SIZE",
                              os.environ.get("SLURM_NTASKS_PER_NODE", "1").split("(")[0])
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{os.environ['WORLD_SIZE']} ranks, but {' and '.join(missing)} not set: "
                        "they would not find each other",
                        "export the first machine's name and a free port, or start with "
                        "launch/slurm/train.sbatch")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for key, value in alone.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if int(os.environ["WORLD_SIZE"]) > 1:
        _choose_interface()


def _not_met(text: str, minutes: float) -> UserError:
    """Why the ranks have not found each other, and what to do about it."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if "EADDRINUSE" in text or "address already in use" in text:
        return UserError(f"port {port} of {host} is in use (MASTER_PORT)",
                         "choose another one (PORT of the launch scripts, --master_port of "
                         "torchrun), or end what uses it")
    if rank == "0":
        return UserError(f"not all of {size} ranks came to {host}:{port} within {minutes:g} "
                         f"minutes ({text.splitlines()[0]})",
                         "start the others, with this MASTER_ADDR and MASTER_PORT; see that the "
                         "network lets them through")
    return UserError(f"{host}:{port} (MASTER_ADDR, MASTER_PORT) does not answer rank {rank} "
                     f"of {size} within {minutes:g} minutes ({text.splitlines()[0]})",
                     "start rank 0 there, correct the address, or open the port between the "
                     "machines")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _choose_interface() -> None:
    """Name the network interface that reaches the master, where the user has not.

    A host name that resolves to loopback makes gloo and nccl listen where no peer can reach them.
    """
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ["MASTER_ADDR"], 9))
            address = probe.getsockname()[0]
        except OSError:
            return
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
