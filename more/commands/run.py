"""All stages in one command, and the list of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from more.commands.next_lines import line, step_of
from more.commands.options import (
    HOW,
    LOOK,
    PLACES,
    RUN_NAMES,
    START,
    AsJson,
    Overrides,
    app,
    show_json,
    tell_next,
)
from more.progress import say

Pictures = Annotated[Path, typer.Argument(
    metavar="DATA", help="a shard set, or a folder of pictures with tags.csv, which is converted "
                         "to RUN/data first")]
RunFolder = Annotated[Path | None, typer.Option(
    *RUN_NAMES, help="run folder [default: checkpoints/NAME_OF_DATA]", rich_help_panel=PLACES)]
RecipeName = Annotated[str | None, typer.Option(
    "--config", help="settings: a recipe's name or a file [default: voc12_dinov2_s without a GPU "
                     "or for fewer than 3,000 pictures, voc12_vit_b up to 40,000, else "
                     "coco14_vit_b]", rich_help_panel=HOW)]
Val = Annotated[Path | None, typer.Option(
    "--val", help="shard set with masks: scored while training, and with stage two at the end",
    rich_help_panel=PLACES)]
StageTwoSet = Annotated[list[str] | None, typer.Option(
    "--stage-two-set", help="section.key=value for stage two alone; repeatable",
    rich_help_panel=HOW)]
Folder = Annotated[Path, typer.Argument(help="folder of runs, or a run")]


@app.command(rich_help_panel=START)
def run(
    data: Pictures,
    run: RunFolder = None,
    config: RecipeName = None,
    val: Val = None,
    overrides: Overrides = None,
    stage_two: StageTwoSet = None,
    as_json: AsJson = False,
) -> None:
    """Tags to masks to a network, all stages: train, localize, refine, train on the masks, score
    where there is truth, report.

    Each stage prints its command as a line to copy, and is skipped when it is complete: after an
    interruption the same command goes on. Where there are GPUs one process runs on each (RANKS=n:
    another number).

    Example: `python -m more run quickstart/data/train --val quickstart/data/val
    --config shapes_micro --run quickstart/run`

    `python -m more run photos --run checkpoints/photos`, where photos holds pictures and tags.csv
    """
    from more.pipeline.start import STOPPED, Asked, run_all

    place = run or Path("checkpoints") / data.resolve().name
    code, facts = run_all(Asked(data, place, config, val, tuple(overrides or ()),
                                tuple(stage_two or ())))
    if as_json:
        show_json({**facts, "code": code})
    elif code == STOPPED:
        tell_next("the same command, it goes on from the checkpoint")
    else:
        _show_end(facts)
        tell_next(line("predict", "PICTURES", "--run", place, "--out", "new_masks"))
    raise typer.Exit(code)


def _show_end(facts: dict) -> None:
    """Scores, where there are any, and where everything is."""
    if facts["scores"]:
        from rich.console import Console

        from more.evaluation.run_scores import score_table

        Console().print(score_table(facts["scores"]))
    say(f"masks: {facts['masks']} (as PNG: "
        f"{line('export', facts['masks'], '--format', 'png', '--out', 'masks_png')})\n"
        f"network: {facts['network']}\nreport: {facts['report']}")


@app.command(rich_help_panel=LOOK)
def runs(
    folder: Folder = Path("checkpoints"),
    as_json: AsJson = False,
) -> None:
    """List runs, stage two inside them as well: state, updates, scores, when, size.

    Scores are those of the best checkpoint where one was chosen, else the last. A training that
    was killed shows as failed; its command goes on from the last checkpoint.

    Example: `python -m more runs quickstart`
    """
    from more.evaluation.run_list import list_runs, newest, run_table

    found = list_runs(folder)
    if as_json:
        show_json(found)
        return
    if not found:
        say(f"{folder}: no run in it")
        tell_next(line("run", "PICTURES"))
        return
    from rich.console import Console

    Console().print(run_table(found))
    tell_next(step_of(newest(found)))
