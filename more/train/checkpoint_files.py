"""Writing checkpoints: each is complete or absent, and the oldest are removed.

The files get their folder's name when all of them are on the disk (see `more.run_folder`).
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from more.data.shards.format import sha256_file, sync, to_json, write_atomic, write_file
from more.errors import UserError
from more.run_folder import (
    BEST,
    MARKER,
    TRAINING,
    UNFINISHED,
    WEIGHTS,
    in_order,
    problem_of,
    read_best,
    step_name,
)
from more.train.checkpoint import RANKS, STATE, Snapshot
from more.train.distributed import World

_ROOM = 1.02  # what a file system needs beside the content


class Writer:
    """Writes checkpoints, in the background if asked to: then training goes on meanwhile.

    Args:
        folder: `RUN/checkpoints`.
        keep: newest checkpoints kept.
        world: ranks; every method is called by all of them.
        background: write in a thread of rank 0; at most one checkpoint is under way.
    """

    def __init__(self, folder: Path, keep: int, world: World, background: bool = False):
        self.folder, self.keep, self.world, self.background = folder, keep, world, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, or begin to.

        Args:
            snapshot: from `checkpoint.take`.

        Raises:
            UserError: this one, or the one before it, could not be written; on every rank.
        """
        self.finish()
        if self.world.main:
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
            self._thread.start()
        if not self.background:
            self.finish()

    @property
    def busy(self) -> bool:
        """Whether this process is writing at the moment."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait for what is under way.

        Raises:
            UserError: it could not be written; on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        told = self.world.agree((error.message, error.fix) if isinstance(error, UserError)
                                else repr(error) if error else None)
        if isinstance(told, tuple):
            raise UserError(*told)
        if told is not None:
            raise error or RuntimeError(f"rank 0 could not write a checkpoint: {told}")

    def _write(self, snapshot: Snapshot) -> None:
        """Write in the thread, and keep an error for `finish`."""
        try:
            write(snapshot, self.folder, self.keep)
        except BaseException as error:  # noqa: BLE001 - raised again by `finish`
            self._error = error


def write(snapshot: Snapshot, folder: Path, keep: int) -> Path:
    """Write a snapshot into `folder`, then remove older checkpoints; rank 0 only.

    Args:
        snapshot: from `checkpoint.take`.
        folder: `RUN/checkpoints`.
        keep: newest checkpoints kept.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: too little space (nothing is left behind, older checkpoints stay).
    """
    target = folder / step_name(snapshot.step)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = int(snapshot.bytes * _ROOM), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{target}: needs {needed:,} bytes, {free:,} are free",
                        "free some space, or train into another --run folder; then run the same "
                        "command again, it continues from the last checkpoint")
    place = start_folder(target)
    try:
        save_file(snapshot.model, str(place / WEIGHTS))
        save_file(snapshot.training, str(place / TRAINING))
        save_file(snapshot.ranks, str(place / RANKS))
        write_file(place / STATE, to_json(snapshot.state))
        commit_folder(place, target, snapshot.record)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(f"{target}: cannot be written ({error}); it needs {needed:,} bytes",
                            "free some space or repair the disk, then run the same command again; "
                            "it continues from the last checkpoint") from error
        raise
    prune(folder, keep)
    return target


def start_folder(target: Path) -> Path:
    """A new empty folder beside `target`, for its files until they are complete.

    What killed runs left is removed; only one process may write into a run.

    Args:
        target: the final name.

    Returns:
        The folder, under a temporary name.
    """
    for stale in target.parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = target.with_name(f"{UNFINISHED}{target.name}.{os.getpid()}")
    folder.mkdir(parents=True)
    return folder


def commit_folder(folder: Path, target: Path, record: dict[str, Any]) -> None:
    """Complete a folder and give it its name: a reader sees all of it or nothing.

    Args:
        folder: from `start_folder`, with all files.
        target: the final name; one that is there already is replaced.
        record: what the marker says beside the files.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size,
                                                "sha256": sha256_file(path)}
    write_atomic(folder / MARKER, to_json({**record, "files": files}))
    if target.exists():
        remove_folder(target)
    folder.rename(target)
    sync(target.parent)


def remove_folder(path: Path) -> None:
    """Delete a checkpoint; from the first moment on it is no longer complete.

    Args:
        path: folder of a checkpoint.
    """
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def prune(folder: Path, keep: int) -> None:
    """Delete complete checkpoints but the newest `keep` and the best.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many of the newest stay.
    """
    best = read_best(folder)
    complete = [path for path in in_order(folder) if problem_of(path, False) is None]
    for path in complete[:-keep]:
        if best is None or path.name != best["checkpoint"]:
            remove_folder(path)


def write_best(folder: Path, metric: str, score: float, step: int) -> None:
    """Record the checkpoint after `step` updates as the best by `metric`.

    Args:
        folder: `RUN/checkpoints`.
        metric: what is scored, as "lam".
        score: its value.
        step: finished updates.
    """
    write_atomic(folder / BEST, to_json({"checkpoint": step_name(step), "metric": metric,
                                         "score": score, "step": step}))
