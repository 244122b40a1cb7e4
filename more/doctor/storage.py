"""Checks of `more doctor`: memory for loaders, and the disk that a run would be written to."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from more.config.load import config_from_dict
from more.config.schema import Config
from more.doctor import probes
from more.doctor.probes import Check

OPEN_FILES = 1024  # several times what shards and pipes of loader processes need
VIT_B = 1_400_000_000  # bytes of a checkpoint of ViT-B with an average


def settings(folder: Path) -> Config | None:
    """Settings of the run in `folder`, if there is one."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    return config_from_dict(json.loads(file.read_text(encoding="utf-8")), source=str(file))


def shared_memory(config: Config | None) -> Iterator[Check]:
    """Whether batches of loader processes fit into shared memory."""
    import torch

    data, ranks = (config or Config()).data, max(1, torch.cuda.device_count())
    needed = data.prefetch_mb * 2**20 * ranks
    free = shutil.disk_usage("/dev/shm").free
    yield Check("shared memory", "ok" if free > needed else "problem",
                f"/dev/shm has {_size(free)} free; the loaders of {ranks} rank(s) take up to "
                f"{_size(needed)} (data.prefetch_mb={data.prefetch_mb})",
                "" if free > needed else "docker run --shm-size=… (or mount /dev/shm larger), or "
                "lower data.prefetch_mb")


def open_files() -> Iterator[Check]:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= OPEN_FILES
    yield Check("open files", "ok" if enough else "warning", f"up to {soft} per process",
                "" if enough else f"ulimit -n {OPEN_FILES if hard < 0 else min(4096, hard)}")


def file_locks(folder: Path) -> Iterator[Check]:
    """Whether locks of the file system and of HDF5 work."""
    with probes.scratch(folder) as place:
        try:
            excluded = probes.locks_work(place)
            why = "" if excluded else "two processes get the same lock"
        except OSError as error:
            why = f"no file locks ({error.strerror})"
        try:
            probes.hdf5_works(place)
        except (OSError, ValueError) as error:
            yield Check("hdf5", "problem", f"{place.parent}: {error}",
                        "export HDF5_USE_FILE_LOCKING=FALSE, or mount the disk with locks")
        else:
            yield Check("hdf5", "ok", "a file can be written and read")
        yield Check("file locks", "warning" if why else "ok", why or f"work in {place.parent}",
                    "mount the disk with locks (NFS: lock service, Lustre: -o flock), or never "
                    "start two writers in one folder" if why else "")


def replacing(folder: Path) -> Iterator[Check]:
    """Whether files and folders are replaced at once, so that no checkpoint is ever half made."""
    with probes.scratch(folder) as place:
        try:
            seconds = probes.replace_works(place)
        except (OSError, ValueError) as error:
            yield Check("replacing", "problem", f"{place.parent}: {error}",
                        "choose a run folder on another disk: an interruption could leave half a "
                        "checkpoint here")
            return
    slow = seconds > 1
    yield Check("replacing", "warning" if slow else "ok",
                f"files and folders are replaced at once; fsync takes {seconds * 1000:.0f} ms",
                "choose a faster disk, or checkpoint.background=True" if slow else "")


def disk(folder: Path, config: Config | None) -> Iterator[Check]:
    """Whether checkpoints fit on the disk."""
    size, kept, whose = VIT_B, 2, "ViT-B"
    if config is not None:
        from more.plan.memory import checkpoint_bytes, parameter_sizes

        size = checkpoint_bytes(*parameter_sizes(config), config.train.ema > 0)
        kept, whose = config.checkpoint.keep, "this run"
    place = probes.existing(folder)
    if not os.access(place, os.W_OK):
        yield Check("disk", "problem", f"{place}: cannot be written",
                    "correct its permissions, or give another --run folder")
        return
    free, needed = shutil.disk_usage(place).free, size * (kept + 1)
    state = "problem" if free < size else "warning" if free < needed else "ok"
    yield Check("disk", state, f"{place}: {_size(free)} free; a checkpoint of {whose} takes "
                f"{_size(size)}, {kept} are kept while one more is written",
                "" if state == "ok" else "free some space, lower checkpoint.keep, or give --run on "
                "another disk")


def clock(folder: Path) -> Iterator[Check]:
    """Whether the clocks of the disk and of this machine agree."""
    with probes.scratch(folder) as place:
        skew = probes.clock_skew(place)
    if probes.steps_back():
        yield Check("monotonic clock", "problem", "it runs backwards",
                    "change the kernel's clock source, or the virtual machine")
    wrong = abs(skew) > 5
    yield Check("clock", "warning" if wrong else "ok",
                f"the disk's clock is {skew:+.1f} s ahead of this machine's",
                "let ntp or chrony set both clocks; till then times in records disagree"
                if wrong else "")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
