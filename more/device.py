"""What this process may use of its machine: its device, cores and memory, its place among ranks.

All of it follows from the machine and the launcher's environment; no other rank is asked. PyTorch
is imported where a device is asked for: what only reads the environment does not wait for it.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Set by srun alone; SLURM_NTASKS is there in the batch script too, where only one process runs.
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
# Numbers of glibc's mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEPT = 2**31 - 1  # bytes, the most that mallopt takes


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
    import torch

    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return torch.device("cuda", int(os.environ[name]) % torch.cuda.device_count())
    return torch.device("cuda", 0)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes bf16 in units of its own; `precision=auto` is bf16 there.

    GPUs before Ampere only imitate it, and CPUs are no faster with it.
    """
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Let matrix products of fp32 numbers round to TF32 (`train.tf32`); nothing on a CPU."""
    if device.type == "cuda":
        import torch

        torch.set_float32_matmul_precision("high" if allowed else "highest")


def usable_cores() -> int:
    """Cores this process may run on (a batch system may grant fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next tensor instead of giving it back to the system.

    By default blocks above 32 MB come from the system every time, and every page of them is made
    and cleared when it is first touched: hundreds of thousands in an update at 448 px. The process
    stays as large as it was at its largest.

    Returns:
        False where there is nothing to set: another C library, or settings of the user's
        (`GLIBC_TUNABLES`, `MALLOC_…_`).
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT), (TOP_PAD, 2**26))
    return all([mallopt(number, value) == 1 for number, value in wanted])
