"""What a run folder holds: which checkpoints are complete, the newest, the best; the run's state.

`RUN/checkpoints/step-000500/` gets its name when every file in it is on the disk, and `COMPLETE` in
it lists size and sha256 of each. `RUN/checkpoints/best.json` names the best one. Nothing is written
here: see `more.train.checkpoint_files`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from more.data.shards.format import sha256_file
from more.errors import UserError

MARKER = "COMPLETE"
WEIGHTS = "model.safetensors"
TRAINING = "training.safetensors"
BEST = "best.json"
STAGE_TWO = "two"
"""Folder of stage two inside the run folder of stage one, unless another is given."""
OWN_DATA = "data"
"""Shard set that `more run` makes of a folder of pictures, inside the run folder."""
UNFINISHED = ".tmp-"


def step_name(step: int) -> str:
    """Name of the checkpoint after `step` updates."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The number in a name that begins with `step-`, finished or not; -1 where there is none.

    Names cannot be compared as text: with the millionth update they get longer.
    """
    digits = re.match(r"step-(\d+)", path.name.removeprefix(UNFINISHED))
    return int(digits.group(1)) if digits else -1


def in_order(folder: Path, prefix: str = "") -> list[Path]:
    """What is called `step-…` (after a prefix) in a folder, by number."""
    return sorted(folder.glob(f"{prefix}step-*"), key=lambda path: (step_of(path), path.name))


def read_best(folder: Path) -> dict[str, Any] | None:
    """`{"checkpoint", "metric", "score", "step"}` of the best checkpoint; None without one."""
    try:
        return json.loads((folder / BEST).read_text())
    except (FileNotFoundError, ValueError):
        return None


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint and why newer ones were passed over."""
    rejected = [f"{path.name.removeprefix(UNFINISHED).split('.')[0]}: its writing was interrupted"
                for path in reversed(in_order(folder, UNFINISHED))]
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


def finished(run: Path) -> bool:
    """Whether `status.json` of a run folder says that training came to its end."""
    return read_status(run).get("state") == "finished"


def read_status(run: Path) -> dict[str, object]:
    """What `status.json` of a run folder says; empty where there is none that can be read."""
    try:
        status = json.loads((run / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
