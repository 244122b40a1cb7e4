"""How much memory a CRF worker takes, foreseen from the size and the labels of its images.

Measured on mosaics of photographs, 0.2 to 3 megapixels with 3 and 21 labels, and a tenth to a third
added; grain everywhere takes more. `more bench refine` measures a worker anew. What a worker has
taken it keeps for the next image, so it holds what its largest image takes.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from more.progress import console

GB = 1e9
SHARE = 0.9  # of the memory that workers may plan with


class Cost(NamedTuple):
    """Bytes of a worker: of the process, of every pixel, and of every pixel and label."""

    process: float
    pixel: float
    label: float


COSTS = {"fast": Cost(230e6, 110, 32), "pydensecrf": Cost(90e6, 270, 42),
         "lattice": Cost(600e6, 650, 50), "exact": Cost(600e6, 650, 50)}


def image_bytes(engine: str, pixels: np.ndarray | int, labels: np.ndarray | int
                ) -> np.ndarray | float:
    """Bytes that the CRF of images takes, without the process around it."""
    cost = COSTS[engine]
    return pixels * (cost.pixel + cost.label * labels)


def free_memory() -> int:
    """Bytes that are free for new processes: of the machine, and of this control group."""
    free = psutil.virtual_memory().available
    limit, used = _group_memory()
    return min(free, max(0, limit - used)) if limit else free


@lru_cache(maxsize=1)
def process_limit() -> int:
    """Bytes that this process could have for one image if it were alone on the machine.

    Asked once, before the first image: what is held for the next image afterwards is no less free.
    """
    total = psutil.virtual_memory().total
    limit, _ = _group_memory()
    bytes_left = (min(total, limit) if limit else total) - psutil.Process().memory_info().rss
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        bytes_left = min(bytes_left, address_space - psutil.Process().memory_info().vms)
    return max(0, bytes_left)


def _group_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Limit and use of this process's control group in bytes (version 2, then 1); 0 if none."""
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            top, now = ((root / name).read_text().strip() for name in (limit, used))
            if top.isdecimal() and int(top) < 2**60:  # no limit is written as 2^63 or so
                return int(top), int(now)
        except OSError:
            continue
    return 0, 0


def check_image(engine: str, pixels: int, labels: int) -> None:
    """Refuse, before it is begun, an image that this process can never hold.

    Args:
        engine: of the CRF.
        pixels: of the image.
        labels: of its seed, background included.

    Raises:
        ValueError: with both figures.
    """
    needed, limit = image_bytes(engine, pixels, labels), SHARE * process_limit()
    if needed > limit:
        raise ValueError(f"its CRF needs {needed / GB:.1f} GB for {pixels / 1e6:.1f} megapixels "
                         f"and {labels} labels, a process here can have {limit / GB:.1f} GB; "
                         "more refine --max-pixels takes it at a reduced size")


def workers_that_fit(engine: str, needs: np.ndarray, workers: int, free: float) -> int:
    """So many workers that their memory is there even if each meets one of the largest images.

    Args:
        engine: of the CRF.
        needs: bytes of every image, as from `image_bytes`.
        workers: at most.
        free: bytes for all workers.

    Returns:
        1 to `workers`.
    """
    largest = np.sort(np.asarray(needs, float))[::-1][:workers]
    held = np.zeros(workers)
    held[:len(largest)] = largest
    fitting = np.cumsum(held + COSTS[engine].process) <= SHARE * free
    return max(1, int(fitting.sum()))


def announced_fit(engine: str, needs: np.ndarray, wanted: int) -> int:
    """`workers_that_fit` into the free memory of this machine; says so where they become fewer.

    Args:
        engine: of the CRF.
        needs: bytes of every image.
        wanted: workers.

    Returns:
        1 to `wanted`.
    """
    free = free_memory() / ranks_here()
    fit = workers_that_fit(engine, needs, wanted, free)
    if fit < wanted:
        console.print(f"{fit} of {wanted} workers: the largest images need up to "
                      f"{needs.max() / GB:.1f} GB in the CRF, {free / GB:.1f} GB are free "
                      "(--max-pixels reduces large images)", highlight=False)
    return fit


def ranks_here(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of a launcher that share this machine's memory."""
    named = environment.get("LOCAL_WORLD_SIZE") or environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    digits = named.split("(")[0].split(",")[0]
    return max(1, int(digits)) if digits.isdecimal() else 1
