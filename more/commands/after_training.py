"""What `more train` says at its end: where the checkpoint is, and the commands that come next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from more.commands.next_lines import line
from more.progress import NEXT_LINES
from more.run_folder import read_best, step_name


class Trained(NamedTuple):
    """What a training was given, for the commands after it.

    Attributes:
        config: file or recipe of its settings.
        train: its images.
        run: run folder.
        updates: that it has made.
        val: validation set, or None.
        masks: what stage two was trained on; None in stage one.
    """

    config: Path
    train: Path
    run: Path
    updates: int
    val: Path | None = None
    masks: Path | None = None


def finished_lines(trained: Trained) -> list[str]:
    """The end of a training that is finished: the checkpoint, then one command a line (none where
    `MORE_NEXT` is "off").

    Args:
        trained: what it was given.
    """
    folder = trained.run / "checkpoints"
    newest, best = step_name(trained.updates), read_best(folder)
    lines = [f"finished; the checkpoint is {folder / newest}"]
    if best is not None and best["checkpoint"] != newest:
        lines.append(f"the best one by {best['metric']} ({best['score']:.1f}) is "
                     f"{folder / best['checkpoint']} (--checkpoint best)")
    if os.environ.get(NEXT_LINES) == "off":  # one of many commands: its caller knows the next
        return lines
    commands = _after_stage_one(trained) if trained.masks is None else _after_stage_two(trained)
    return [*lines, "next:", *commands]


def _after_stage_one(trained: Trained) -> list[str]:
    """Seeds and masks of the training images, then stage two."""
    run, data = trained.run, trained.train
    seeds, masks = (run / kind / "lam" for kind in ("seeds", "masks"))
    val = ("--val", trained.val) if trained.val else ()
    return [line("localize", "--run", run, "--data", data, "--out", seeds),
            line("refine", seeds, "--data", data, "--out", masks, "--threshold", "auto"),
            line("train", trained.config, "--train", data, *val, "--masks", masks, "--init", run)]


def _after_stage_two(trained: Trained) -> list[str]:
    """Masks of new pictures, and the page about the run."""
    return [line("predict", "PICTURES", "--run", trained.run, "--out", "new_masks"),
            line("report", "--run", trained.run)]


def resume_line(arguments: Sequence[str], ranks: int) -> str:
    """How a stopped training goes on.

    Args:
        arguments: of this process, without the program.
        ranks: processes of the training.

    Returns:
        A sentence with the command; the ranks' launcher stays as it was.
    """
    command = shlex.join(_resuming(arguments))
    if ranks == 1:
        return f"it goes on with:\npython -m more {command}"
    if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks):  # all on this machine
        # The -- keeps torchrun from reading --run as a short form of its own --run-path.
        return ("it goes on with:\n"
                f"torchrun --standalone --nproc_per_node={ranks} -m more -- {command}")
    return f"it goes on when the same launcher starts in every process:\npython -m more {command}"


def _resuming(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--resume VALUE`, which may say to start afresh, and without what a
    launcher has put in."""
    kept, skip = [], False
    for word in arguments:
        if not skip and not word.startswith(("--resume=", "--local_rank")) and word != "--resume":
            kept.append(word)
        skip = word == "--resume"
    return kept
