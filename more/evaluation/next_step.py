"""What to do next with a run, as one command: the first stage that is still missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.run_scores import TAGS, TRUE, about_run, stage_folders

_GO_ON = "The training is not finished; the same command goes on from the last checkpoint."
_SCORE = "Score the network on images that it has not seen."
_PREDICT = "All stages are done. Masks of your own new pictures:"


def next_step(run: Path, place: str, scores: list[dict[str, Any]], state: str | None
              ) -> dict[str, str]:
    """Words and command of the next step.

    Args:
        run: the run folder.
        place: how the command names it, unquoted; on the page no absolute path, since that is
            passed on.
        scores: rows of `read_scores`.
        state: of the training, as in `status.json`; None where it is unknown.

    Returns:
        `why` and `command`. Words in capitals (SET, VAL, CONFIG) stand for the reader's own.
    """
    place = shlex.quote(place)  # a shell joins 'my run'/seeds/lam to one word
    if about_run(run, [], "")["stage"] == 2:
        return _of_stage_two(place, scores, state)
    folders = {about["supervision"]: name for name, about in reversed(stage_folders(run, []))}
    second = [row for row in scores if row["stage"] == 2]
    unscored = TAGS in folders and not scores  # all stages without a score: there is no truth
    steps: list[tuple[Callable[[], bool], str, str]] = [
        (lambda: state not in (None, "finished"),
         _GO_ON, f"bash launch/train.sh CONFIG --train SET --run {place}"),
        (lambda: not _any(run, "seeds", "masks"), "Seeds are next: CAM and LAM of every image.",
         f"python -m more localize --run {place} --data SET --out {place}/seeds/lam"),
        (lambda: not _any(run, "masks"), "The dense CRF makes masks of the seeds.",
         f"python -m more refine {place}/{_first(run, 'seeds')} --data SET "
         f"--out {place}/masks/lam --threshold auto"),
        (lambda: not any(row["stage"] == 1 for row in scores) and _may_have_truth(run)
         and not unscored,
         "How good are the masks? (Only with true masks.)",
         f"python -m more evaluate {place}/{_first(run, 'masks')} --data SET "
         f"--save {place}/scores/masks.json"),
        (lambda: TAGS not in folders, "Train the network for new pictures on these masks.",
         f"bash launch/train.sh CONFIG --train SET --masks {place}/{_first(run, 'masks')} "
         f"--init {place}"),
        (lambda: not any(row["supervision"] == TAGS for row in second) and not unscored,
         _SCORE, _score(f"{place}/{folders.get(TAGS)}")),
        (lambda: TRUE not in folders and bool(second) and _may_have_truth(run),
         "How far is full supervision? Train the reference on true masks, for comparison only.",
         f"bash launch/train.sh CONFIG --train SET --masks SET --init {place} "
         f"--run {place}/true"),
    ]
    for due, why, command in steps:
        if due():
            return {"why": why, "command": command}
    return {"why": _PREDICT,
            "command": f"python -m more predict PICTURES --run {place} --out masks"}


def _of_stage_two(place: str, scores: list[dict[str, Any]], state: str | None) -> dict[str, str]:
    """The next step where the run folder itself is one of stage two."""
    if state not in (None, "finished"):
        return {"why": _GO_ON, "command": "bash launch/train.sh CONFIG --train SET --masks MASKS "
                                          f"--init RUN --run {place}"}
    if not scores:
        return {"why": _SCORE, "command": _score(place)}
    return {"why": _PREDICT, "command": f"python -m more predict PICTURES --run {place} "
                                        "--out masks"}


def _score(place: str) -> str:
    return (f"python -m more localize --run {place} --data VAL --out {place}/seeds/val "
            f"--map decoder && python -m more evaluate {place}/seeds/val --data VAL "
            f"--save {place}/scores/seeds_val.json")


def _any(run: Path, *kinds: str) -> bool:
    return any(path.is_dir() for kind in kinds for path in (run / kind).glob("*"))


def _may_have_truth(run: Path) -> bool:
    """False where the training images are found and have no true masks, so nothing can be scored.
    """
    try:
        recorded = json.loads((run / "run.json").read_text(encoding="utf-8"))["train"]
        return ShardSet(Path(recorded), kind="images").has("mask")
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return True


def _first(run: Path, kind: str) -> str:
    names = sorted(path.name for path in (run / kind).glob("*") if path.is_dir())
    best = next((name for name in ("lam", "fused", *names) if name in names), "lam")
    return f"{kind}/{best}"
