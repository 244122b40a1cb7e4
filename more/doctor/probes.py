"""Single tests of this machine for `more doctor`: disk, clock, locks, two processes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from more.data.shards.format import sync, write_atomic

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check.
        state: "ok", "warning" or "problem".
        what: was found.
        fix: what to do about it.
    """

    name: str
    state: str
    what: str
    fix: str = ""


PAIR = """
import sys, torch
from more.train.distributed import setup, teardown
world = setup(1, 1)
values = world.sum(torch.full((100_000,), world.rank + 1.0, device=world.device))
assert world.size == 2 and bool((values == 3).all()), values
teardown()
"""
"""Program of each of the two processes: set up as for training, and one sum over ranks."""


def existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder on the same file system, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".more-doctor-", dir=existing(folder)) as place:
        yield Path(place)


def locks_work(place: Path) -> bool:
    """Whether a second lock on a file is refused while the first is held.

    Args:
        place: folder to try it in.

    Returns:
        Whether it is.

    Raises:
        OSError: the file system has no locks.
    """
    with open(place / "lock", "w") as first, open(place / "lock") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return is_locked(second.fileno())


def is_locked(descriptor: int) -> bool:
    """Whether another process holds the lock of an open file; takes it for a moment if not.

    Args:
        descriptor: of the file.

    Returns:
        Whether it is held.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def hdf5_works(place: Path) -> None:
    """Write an HDF5 file and read it back, with the library's own locks.

    Args:
        place: folder to try it in.

    Raises:
        OSError: it cannot be locked, written or read.
        ValueError: it reads otherwise than it was written.
    """
    import h5py

    with h5py.File(place / "probe.h5", "w") as file:
        file["values"] = list(range(1000))
    with h5py.File(place / "probe.h5", "r") as file:
        if int(file["values"][:].sum()) != 499_500:
            raise ValueError("an HDF5 file reads otherwise than it was written")


def replace_works(place: Path) -> float:
    """Replace a file and a folder in the way checkpoints are committed.

    Args:
        place: folder to try it in.

    Returns:
        Seconds that one `fsync` takes.

    Raises:
        OSError: no rename or no fsync there.
        ValueError: the old content is still seen.
    """
    for content in (b"old", b"new"):
        write_atomic(place / "file", content)
    (place / "folder.tmp").mkdir()
    (place / "folder.tmp" / "file").write_bytes(b"x" * 4096)
    started = time.monotonic()
    sync(place / "folder.tmp" / "file")
    seconds = time.monotonic() - started
    (place / "folder.tmp").rename(place / "folder")
    sync(place)
    if (place / "file").read_bytes() != b"new" or not (place / "folder" / "file").is_file():
        raise ValueError("a file that was replaced still has its old content")
    return seconds


def clock_skew(place: Path) -> float:
    """Seconds by which the file system's clock is ahead of this machine's."""
    before = time.time()
    (place / "clock").write_bytes(b"now")
    after, written = time.time(), (place / "clock").stat().st_mtime
    return written - min(max(written, before), after)


def steps_back(readings: int = 1000) -> bool:
    """Whether the monotonic clock ever runs backwards."""
    seen = [time.monotonic_ns() for _ in range(readings)]
    return any(later < earlier for earlier, later in zip(seen, seen[1:], strict=False))


def autocast_error(device: torch.device, dtype: torch.dtype) -> str:
    """Try a small matrix product and its gradient under autocast.

    Args:
        device: where.
        dtype: of autocast.

    Returns:
        Why it fails; empty if it works.
    """
    import torch

    try:
        weights = torch.randn(32, 32, device=device, requires_grad=True)
        with torch.autocast(device.type, dtype):
            product = torch.randn(8, 32, device=device) @ weights
        product.float().square().mean().backward()
        if product.dtype != dtype:
            return f"autocast gives {product.dtype}"
        return "" if bool(torch.isfinite(weights.grad).all()) else "the gradient is not finite"
    except (RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]


def pair_error(seconds: float, gpus: bool) -> str:
    """Let two processes of this machine add a tensor.

    Args:
        seconds: time limit for both together.
        gpus: over NCCL with a GPU each; else over gloo.

    Returns:
        Why it fails; empty if it works.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    base = {name: value for name, value in os.environ.items()
            if not name.startswith("TORCHELASTIC")}
    base |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    if not gpus:
        base |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryFile("w+") as first, tempfile.TemporaryFile("w+") as second:
        logs = (first, second)
        pair = [subprocess.Popen([sys.executable, "-c", PAIR], stderr=log,
                                 stdout=subprocess.DEVNULL,
                                 env={**base, "RANK": rank, "LOCAL_RANK": rank})
                for rank, log in zip("01", logs, strict=True)]
        codes = _wait(pair, seconds)
        failed = [rank for rank, code in enumerate(codes) if code]
        if not failed and None not in codes:
            return ""
        return "; ".join(f"rank {rank}: {_last_line(logs[rank])}" for rank in failed) or (
            f"no answer within {seconds:g} s")


def _wait(pair: list[subprocess.Popen], seconds: float) -> list[int | None]:
    """Wait for the processes: exit codes, None for one that had to be ended.

    Once one has failed, the other gets two more seconds.
    """
    end = time.monotonic() + seconds
    while None in (codes := [process.poll() for process in pair]) and time.monotonic() < end:
        if any(codes):
            end = min(end, time.monotonic() + 2)
        time.sleep(0.05)
    for process, code in zip(pair, codes, strict=True):
        if code is None:
            process.kill()
            process.wait()
    return codes


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1] if lines else "ended without a message"
