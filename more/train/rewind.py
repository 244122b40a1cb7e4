"""Where `--resume` begins: the newest checkpoint, an earlier one, or none.

What the run did after an earlier checkpoint is set aside. Left in place, later checkpoints would
count as newer than those of the training that goes on from the earlier one: they would be resumed
and localized, and its records would mix with the new ones.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from more import run_folder
from more.data.shards.format import write_atomic
from more.data.shards.lock import folder_lock
from more.train.distributed import World


def resolve(run: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint that `--resume auto|never|PATH` means for a run; None = start afresh.

    Only training calls it, on the rank that writes: "never" sets an earlier run aside.

    Args:
        run: run folder.
        resume: `auto`, `never` or a checkpoint folder.

    Returns:
        The checkpoint, and why newer ones were passed over.

    Raises:
        UserError: as `run_folder.choose` and `set_aside`.
    """
    if resume == "never":
        set_aside(run)
        return None, []
    if resume == "auto":
        path, rejected = run_folder.find_newest(run / "checkpoints")
        return run_folder.choose(run, "auto") if path is None else path, rejected
    return run_folder.choose(run, resume), []


def go_back(run: Path, source: Path | None, resume: str, world: World) -> list[str]:
    """Where `--resume` names a checkpoint, set aside what the run did after it.

    All ranks call it, before anything is written to the run folder.

    Args:
        run: run folder.
        source: the checkpoint that `--resume` means, or None.
        resume: the option.
        world: ranks; the first one moves the files.

    Returns:
        What the run has to say about it: one sentence or none.
    """
    if source is None or resume in ("auto", "never"):
        return []
    said = leave_future(run, source) if world.main else None
    world.barrier()
    return [said] if said else []


def leave_future(run: Path, source: Path) -> str | None:
    """Move what a run folder holds of later updates than a checkpoint's to `RUN/earlier-1`, ….

    Checkpoints, the best one's record, lines of `log.jsonl` and reports on left-out updates. Where
    the checkpoint is of another run, nothing in the folder belongs to what follows: all is moved.

    Args:
        run: run folder.
        source: the checkpoint that `--resume` names.

    Returns:
        What was moved and where to, as a sentence; None where there was nothing.
    """
    if source.resolve().parent != (run / "checkpoints").resolve():
        place = set_aside(run)
        return None if place is None else (
            f"{source} is a checkpoint of another run: what was in this folder is set aside in "
            f"{place}")
    step = run_folder.info(source)["step"]
    later = [path for path in run_folder.in_order(run / "checkpoints")
             if run_folder.step_of(path) > step]
    reports = [path for path in run_folder.in_order(run / "nonfinite")
               if run_folder.step_of(path) >= step]
    kept, dropped = _split(run / "log.jsonl", step)
    best = run_folder.read_best(run / "checkpoints")
    forget = best is not None and best["step"] > step
    if not (later or reports or dropped or forget):
        return None
    place = new_place(run)
    # The log first: an interruption in between leaves checkpoints, and so the same work to do.
    if dropped:
        write_atomic(place / "log.jsonl", "".join(dropped).encode())
        write_atomic(run / "log.jsonl", "".join(kept).encode())
    if forget:
        later.insert(0, run / "checkpoints" / run_folder.BEST)
    for path in [*reports, *later]:
        target = place / path.relative_to(run)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    names = ", ".join(path.name for path in later
                      if path.name != run_folder.BEST) or "no checkpoint"
    return (f"the run goes back to {step} updates: what came after them ({names}; {len(dropped)} "
            f"records of log.jsonl) is set aside in {place}")


def set_aside(run: Path) -> Path | None:
    """Move what an earlier training left in a run folder to `RUN/earlier-1` (or -2, …).

    Left in place, its later steps would count as newer than those of a training that starts
    afresh: they would be resumed and localized, and the new ones removed as old. Its stage two
    (`RUN/two`) goes with it: `more predict` would take it for that of the new training.

    Args:
        run: run folder.

    Returns:
        The new folder; None where there was nothing.

    Raises:
        UserError: stage two is being trained there.
    """
    left = [run / name for name in ("checkpoints", "log.jsonl", "train.log", "tensorboard",
                                    "config.json", "run.json", "status.json", "nonfinite",
                                    "wandb.json", "wandb", run_folder.STAGE_TWO)
            if (run / name).exists()]
    if not left:
        return None
    if left[-1].name == run_folder.STAGE_TWO:
        with folder_lock(left[-1]):  # else it would be moved away from under its training
            pass
    place = new_place(run)
    for path in left:
        path.rename(place / path.name)
    return place


def new_place(run: Path) -> Path:
    """A new folder `RUN/earlier-1` (or -2, …) for what is set aside.

    Args:
        run: run folder.

    Returns:
        The folder, empty.
    """
    number = next(n for n in itertools.count(1) if not (run / f"earlier-{n}").exists())
    place = run / f"earlier-{number}"
    place.mkdir()
    return place


def _split(log: Path, step: int) -> tuple[list[str], list[str]]:
    """The lines of a log up to an update (and any that cannot be read), and the later ones."""
    kept: list[str] = []
    dropped: list[str] = []
    if log.is_file():
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines(keepends=True):
            (dropped if _number(line) > step else kept).append(line)
    return kept, dropped


def _number(line: str) -> int:
    """The update that a line of the log is of; -1 where it cannot be read."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
