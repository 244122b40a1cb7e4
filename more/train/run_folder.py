"""Checkpoint folders: which are complete, which to resume, which to keep.

`RUN/checkpoints/step-000500/` gets its name when every file in it is on the disk, and `COMPLETE` in
it lists size and sha256 of each. `RUN/checkpoints/best.json` names the best one.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from more.data.shards.format import sha256_file, sync, to_json, write_atomic
from more.errors import UserError

MARKER = "COMPLETE"
WEIGHTS = "model.safetensors"
TRAINING = "training.safetensors"
BEST = "best.json"
STAGE_TWO = "two"
"""Folder of stage two inside the run folder of stage one, unless another is given."""
_TEMPORARY = ".tmp-"


def step_name(step: int) -> str:
    """Name of the checkpoint after `step` updates."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The number in a name that begins with `step-`, finished or not; -1 where there is none.

    Names cannot be compared as text: with the millionth update they get longer.
    """
    digits = re.match(r"step-(\d+)", path.name.removeprefix(_TEMPORARY))
    return int(digits.group(1)) if digits else -1


def in_order(folder: Path, prefix: str = "") -> list[Path]:
    """What is called `step-…` (after a prefix) in a folder, by number."""
    return sorted(folder.glob(f"{prefix}step-*"), key=lambda path: (step_of(path), path.name))


def start_folder(target: Path) -> Path:
    """A new empty folder beside `target`, for its files until they are complete.

    What killed runs left is removed; only one process may write into a run.
    """
    for stale in target.parent.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = target.with_name(f"{_TEMPORARY}{target.name}.{os.getpid()}")
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
    """Delete a checkpoint; from the first moment on it is no longer complete."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def prune(folder: Path, keep: int) -> None:
    """Delete complete checkpoints but the newest `keep` and the best."""
    best = read_best(folder)
    complete = [path for path in in_order(folder) if problem_of(path, False) is None]
    for path in complete[:-keep]:
        if best is None or path.name != best["checkpoint"]:
            remove_folder(path)


def read_best(folder: Path) -> dict[str, Any] | None:
    """`{"checkpoint", "metric", "score", "step"}` of the best checkpoint; None without one."""
    try:
        return json.loads((folder / BEST).read_text())
    except (FileNotFoundError, ValueError):
        return None


def write_best(folder: Path, metric: str, score: float, step: int) -> None:
    """Record the checkpoint after `step` updates as the best by `metric`."""
    write_atomic(folder / BEST, to_json({"checkpoint": step_name(step), "metric": metric,
                                         "score": score, "step": step}))


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint and why newer ones were passed over."""
    rejected = [f"{path.name.removeprefix(_TEMPORARY).split('.')[0]}: its writing was interrupted"
                for path in reversed(in_order(folder, _TEMPORARY))]
    for path in reversed(in_order(folder)):
        problem = problem_of(path)
        if problem is None:
            return path, rejected
        rejected.append(f"{path.name}: {problem}")
    return None, rejected


def problem_of(path: Path, hashes: bool = True) -> str | None:
    """Why a checkpoint folder cannot be used; None when it is complete.

    Args:
        path: the folder.
        hashes: compare contents, too (about a second per GB), not only sizes.
    """
    marker = path / MARKER
    if not path.is_dir():
        return "no such folder"
    if not marker.is_file():
        return f"incomplete ({MARKER} is missing)"
    try:
        files = {name: (entry["bytes"], entry["sha256"])
                 for name, entry in json.loads(marker.read_text())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} cannot be read, or an older version wrote it"
    for name, (size, digest) in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, not {size}"
        if hashes and sha256_file(path / name) != digest:
            return f"{name} is damaged (sha256 differs)"
    return None


def info(path: Path) -> dict[str, Any]:
    """What the marker says: step, world, configuration, files."""
    return json.loads((path / MARKER).read_text())


def resolve(run: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint that `--resume auto|never|PATH` means for a run; None = start afresh.

    Only training calls it, on the rank that writes: "never" sets an earlier run aside.

    Returns:
        The checkpoint, and why newer ones were passed over.

    Raises:
        UserError: as `choose`.
    """
    if resume == "never":
        set_aside(run)
        return None, []
    if resume == "auto":
        path, rejected = find_newest(run / "checkpoints")
        return choose(run, "auto") if path is None else path, rejected
    return choose(run, resume), []


def choose(run: Path, which: str) -> Path | None:
    """A complete checkpoint: the newest of a run ("auto") or the given folder; None without any.

    Raises:
        UserError: the given path is not a complete checkpoint; or checkpoints exist and none of
            them is complete (never a silent fresh start).
    """
    if which != "auto":
        problem = problem_of(Path(which))
        if problem:
            raise UserError(f"{which}: not a usable checkpoint: {problem}",
                            "give a complete folder RUN/checkpoints/step-…, or leave it out "
                            "to take the newest complete one")
        return Path(which)
    path, rejected = find_newest(run / "checkpoints")
    if path is None and any((run / "checkpoints").glob("step-*")):
        raise UserError(f"{run}/checkpoints: no complete checkpoint ({'; '.join(rejected)})",
                        "remove these folders; `more train … --resume never` starts afresh")
    return path


def set_aside(run: Path) -> Path | None:
    """Move what an earlier training left in a run folder to `RUN/earlier-1` (or -2, …).

    Left in place, its later steps would count as newer than those of a training that starts
    afresh: they would be resumed and localized, and the new ones removed as old.

    Returns:
        The new folder; None where there was nothing.
    """
    left = [run / name for name in ("checkpoints", "log.jsonl", "train.log", "tensorboard",
                                    "config.json", "run.json", "status.json", "nonfinite")
            if (run / name).exists()]
    if not left:
        return None
    place = new_place(run)
    for path in left:
        path.rename(place / path.name)
    return place


def new_place(run: Path) -> Path:
    """A new folder `RUN/earlier-1` (or -2, …) for what is set aside."""
    number = next(n for n in itertools.count(1) if not (run / f"earlier-{n}").exists())
    place = run / f"earlier-{number}"
    place.mkdir()
    return place
