"""What a dask worker does for a job: look around, and run a task once.

Imports neither torch nor dask.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

from more.data.shards.format import MANIFEST, TEMPORARY
from more.data.shards.manifest import read_manifest
from more.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
SHARED = "mount the folder under the same path on every machine"


class Job(Protocol):
    """What the tasks of a job have in common.

    Attributes:
        seeds, data: folders of the shard sets that they read.
        digests: content of the two.
        out: the output folder.
    """

    seeds: str
    data: str
    digests: tuple[str, str]
    out: str

    def missing_here(self) -> tuple[str, str] | None:
        """What this process lacks for the work: the problem and its remedy; None: nothing."""


class LostWorker(BrokenExecutor):
    """The worker that had the task before died."""


def look_around(spec: Job, sign: str) -> tuple[str, str] | None:
    """What keeps this process from working on `spec`.

    Args:
        spec: any task of the job.
        sign: a file that the driver has put into the output folder.

    Returns:
        The problem and its remedy, or None.
    """
    for folder, digest in zip((spec.seeds, spec.data), spec.digests, strict=True):
        try:
            found = read_manifest(folder).digest
        except UserError as error:
            return error.message, SHARED
        if found != digest:
            return f"{Path(folder) / MANIFEST} describes another set here", SHARED
    if not Path(sign).is_file():
        return f"does not see the files that the driver writes to {spec.out}", SHARED
    probe = Path(f"{sign}.{uuid4().hex}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"cannot write to {spec.out} ({error.strerror})", "correct the permissions"
    return spec.missing_here()


def run_once(mark: str, function: Callable[[Task], Result], task: Task) -> Result:
    """`function(task)`, but not a second time for the same submission.

    dask starts a task up to four times on workers that die of it. The driver must hear of the
    first death, because it knows what to leave out.

    Args:
        mark: a file name of this submission's own.
        function: importable.
        task: its argument.

    Returns:
        What the function returns.

    Raises:
        LostWorker: the submission was started before.
    """
    import cv2

    cv2.setNumThreads(1)
    try:
        open(mark, "x").close()
    except FileExistsError:
        raise LostWorker("the worker that had it before died") from None
    try:
        return function(task)
    finally:
        Path(mark).unlink(missing_ok=True)


def mark_name(folder: str, what: str) -> str:
    """A file name in `folder` that nobody has; swept away with other temporaries."""
    return str(Path(folder) / f"{what}{TEMPORARY}{uuid4().hex}")
