"""Which runs lie in a folder: state, how far they are, scores, size."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD

from more.data.shards.lock import is_held
from more.errors import UserError
from more.evaluation.run_scores import about_run, read_scores
from more.evaluation.score_result import percent
from more.evaluation.training_record import read_log
from more.progress import PlainTable
from more.run_folder import OWN_DATA, read_best, read_status

CONTENT = {"checkpoints", "seeds", "masks", "scores", "tensorboard", "tokens", "stacks",
           "nonfinite", "tune", OWN_DATA}
"""Folders of a run that hold its files, and no further runs."""
_RUN_FILES = ("run.json", "status.json")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """All runs in a folder, at any depth, and those of stage two inside them.

    Args:
        folder: a folder of runs, or a run.

    Returns:
        JSON values of each run, sorted by name: `name` (its path in the folder), `run` (its path),
        `stage`, `supervision`, `state` ("running", "finished", "stopped", "failed" or "unknown"),
        `step`, `iterations`, `scores` and `scored_at` (mIoU in percent by route, of the best
        checkpoint where one was chosen, else the last), `masks` and `masks_miou`, `changed`
        (seconds since 1970) and `bytes`. `masks_miou` is a share of 1, as in score files.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a folder that holds runs, or a run")
    return [_about(path, folder) for path in sorted(_find(folder))]


def _find(folder: Path) -> Iterator[Path]:
    """Run folders below a folder, and itself."""
    for place, inner, files in os.walk(folder):
        is_run = any(name in files for name in _RUN_FILES)
        if is_run:
            yield Path(place)
        inner[:] = [name for name in inner if not name.startswith(".")
                    and not (is_run and name in CONTENT)]


def _about(run: Path, folder: Path) -> dict[str, Any]:
    """The facts of one run, see `list_runs`."""
    status, best = read_status(run), read_best(run / "checkpoints")
    scores, step = _scores(run, None if best is None else best.get("step"))
    masks = [row for row in read_scores(run, []) if not row["folder"]
             and row["set"].startswith("masks")]
    found = masks[-1] if masks else {}
    return {
        "name": run.relative_to(folder).as_posix() if run != folder else run.name,
        "run": str(run), **about_run(run, [], ""), "state": _state(run, status),
        "step": status.get("step"), "iterations": status.get("iterations"),
        "scores": scores, "scored_at": step, "best": best is not None and step == best.get("step"),
        "masks": found.get("set"), "masks_miou": found.get("miou"),
        "changed": _changed(run), "bytes": _bytes(run)}


def _state(run: Path, status: dict[str, object]) -> str:
    """What `status.json` says, corrected by the lock: a killed training could not write it."""
    state = str(status.get("state", "unknown"))
    if is_held(run):
        return "running"
    return "failed" if state == "running" else state


def _scores(run: Path, best: int | None) -> tuple[dict[str, float], int | None]:
    """mIoU by route while training, of the step `best` or the last one; and the step. A set that
    shows no class has no mIoU, which the log writes as NaN: it is left out."""
    records = [record for record in read_log(run, []) if isinstance(record.get("eval"), dict)]
    chosen = [record for record in records if record["step"] == best] or records[-1:]
    if not chosen:
        return {}, None
    known = {name: value for name, value in chosen[0]["eval"].items()
             if isinstance(value, int | float) and math.isfinite(value)}
    return known, chosen[0]["step"]


def _changed(run: Path) -> float:
    """When the run last wrote about itself, in seconds since 1970."""
    files = [run / name for name in ("status.json", "run.json", "log.jsonl")]
    return max(path.stat().st_mtime for path in files if path.is_file())


def _bytes(run: Path) -> int:
    """Size of all files of a run on the disk; those that vanish meanwhile do not count."""
    total = 0
    for place, _, files in os.walk(run):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def run_table(rows: Sequence[dict[str, Any]]) -> PlainTable:
    """The runs of `list_runs` as a rich table."""
    table = PlainTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for title in ("step", "mIoU while training", "masks mIoU", "changed", "size"):
        table.add_column(title, justify="right")
    for row in rows:
        scores = ", ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
        place = f" ({'best, ' if row['best'] else ''}at {row['scored_at']})" if scores else ""
        masks = "–" if row["masks_miou"] is None else percent(row["masks_miou"])
        changed = datetime.fromtimestamp(row["changed"]).strftime("%Y-%m-%d %H:%M")
        step = "–" if row["step"] is None else f"{row['step']}/{row['iterations']}"
        table.add_row(row["name"], row["state"], step, (scores or "–") + place, masks, changed,
                      _size(row["bytes"]))
    return table


def _size(number: float) -> str:
    """Bytes with a unit."""
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {_UNITS[unit]}"


def newest(rows: Sequence[dict[str, Any]]) -> Path | None:
    """The run that was changed last, one of stage one where there is any; None without a run."""
    outer = [row for row in rows if row["stage"] == 1] or list(rows)
    return Path(max(outer, key=lambda row: row["changed"])["run"]) if outer else None
