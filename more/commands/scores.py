"""Scores: of one set, of a run, of several experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.next_lines import after_evaluate, line
from more.commands.options import (
    HOW,
    LOOK,
    MASKS,
    PLACES,
    SHOWN,
    SPEED,
    AsJson,
    Data,
    Run,
    app,
    show_json,
    tell_next,
)
from more.errors import UserError
from more.progress import console

if TYPE_CHECKING:
    from more.evaluation.truth_folder import TruthFolder

Threshold = Annotated[float | None, typer.Option(
    help="background threshold of seeds [default: as recorded]", rich_help_panel=HOW)]
Sweep = Annotated[bool, typer.Option(
    help="score thresholds 0.1 … 0.9 as well", rich_help_panel=HOW)]
Classes = Annotated[str | None, typer.Option(
    help="comma-separated names: also the mean over these", rich_help_panel=HOW)]
Boundary = Annotated[float, typer.Option(
    help="band of the boundary IoU, as a share of the image's diagonal; 0 = off",
    rich_help_panel=HOW)]
Calibration = Annotated[bool, typer.Option(
    "--calibration/--no-calibration", help="judge the confidence that masks store",
    rich_help_panel=HOW)]
Against = Annotated[Path | None, typer.Option(
    help="B: other mask or seed shards, scored on the images that both hold, or a file that "
         "--save wrote; shows A, B and A − B", rich_help_panel=PLACES)]
Truth = Annotated[Path | None, typer.Option(
    "--truth", help="folder of true masks, PNG files with a class index per pixel, named like the "
                    "images; for sets without truth of their own", rich_help_panel=PLACES)]
TruthClasses = Annotated[Path | None, typer.Option(
    "--truth-classes", help="classes of these masks' numbers, one a line, matched with the set's "
                            "by name [default: classes.txt in that folder]",
    rich_help_panel=PLACES)]
TruthUnknown = Annotated[str, typer.Option(
    "--truth-unknown", help="pixels of classes that the set lacks: refuse, background or ignore",
    rich_help_panel=HOW)]
Workers = Annotated[int | None, typer.Option(
    min=1, help="threads; the figures do not depend on it [default: as cores]",
    rich_help_panel=SPEED)]
Save = Annotated[Path | None, typer.Option(
    help="also write the JSON to this file (RUN/scores/NAME.json shows in the report)",
    rich_help_panel=PLACES)]


@app.command(rich_help_panel=MASKS)
def evaluate(
    path: Annotated[Path, typer.Argument(help="mask or seed shards")],
    data: Data,
    threshold: Threshold = None,
    sweep: Sweep = False,
    classes: Classes = None,
    boundary: Boundary = 0.02,
    calibration: Calibration = True,
    against: Against = None,
    truth: Truth = None,
    truth_classes: TruthClasses = None,
    truth_unknown: TruthUnknown = "refuse",
    workers: Workers = None,
    save: Save = None,
    as_json: AsJson = False,
) -> None:
    """Score seeds or masks against the data set's truth: IoU, boundary IoU, precision, recall,
    FP/TP, and how far the confidence can be trusted.

    Example: `python -m more evaluate quickstart/run/masks/lam --data quickstart/data/train
    --save quickstart/run/scores/masks_lam.json`

    `python -m more evaluate A --data SET --against B`

    `python -m more evaluate A --data SET --truth masks --truth-classes classes.txt`
    """
    from rich.console import Console

    options = {"threshold": threshold, "sweep": sweep, "classes": _names(classes),
               "boundary": boundary, "calibration": calibration, "workers": workers,
               "name": _short(path),
               "truth_folder": _truth(truth, truth_classes, truth_unknown)}
    if save is not None:
        _check_save(save, against)
    if against is not None:
        from more.evaluation.compare import compare, comparison_table

        found = compare(path, against, data, against_name=_short(against), **options)
        shown = comparison_table(found)
    else:
        from more.evaluation.score import evaluate as job

        found = job(path, data, **options)
        shown = found.table()
        if save is not None:
            found.save(save)
    if as_json:
        show_json(found.to_json())
        return
    Console().print(shown)
    tell_next(after_evaluate(path, data, save or against))


def _truth(folder: Path | None, classes: Path | None, unknown: str) -> TruthFolder | None:
    """Where the truth is if not in the data set."""
    from more.evaluation.truth_folder import TruthFolder

    if folder is not None:
        return TruthFolder(folder, classes, unknown)
    if classes is not None or unknown != "refuse":
        raise UserError("--truth-classes and --truth-unknown are about masks in a folder",
                        "give the folder with --truth")
    return None


def _short(path: Path) -> str:
    """The last two parts of a set's path, such as masks/lam."""
    return "/".join(path.parts[-2:])


def _check_save(save: Path, against: Path | None) -> None:
    """Say before the work what would stop the saving after it."""
    from more.data.shards.format import make_folder

    if against is not None:
        raise UserError("--save keeps the score of one set, --against compares two",
                        "write the comparison with --json > FILE, or score A alone with --save")
    make_folder(save.parent)
    if save.is_dir():
        raise UserError(f"{save}: is a folder", f"give a file, such as {save}/NAME.json")


@app.command(rich_help_panel=LOOK)
def scores(
    run: Run,
    as_json: AsJson = False,
) -> None:
    """The table of everything scored so far under RUN/scores, and in folders of stage two in RUN.

    Example: `python -m more scores --run quickstart/run`
    """
    from more.evaluation.run_scores import read_scores, score_table

    if not run.is_dir():
        raise UserError(f"{run}: no such run folder", "give the --run folder of `more train`")
    notes: list[str] = []
    rows = read_scores(run, notes)
    if not rows:
        raise UserError(f"{run}/scores: no score ({' '.join(notes)})",
                        f"more evaluate … --save {run}/scores/NAME.json")
    for note in notes:
        console.print(note, highlight=False, markup=False)
    if as_json:
        show_json(rows)
        return
    from rich.console import Console

    Console().print(score_table(rows))
    tell_next(line("report", "--run", run))


Experiments = Annotated[list[str], typer.Argument(
    metavar="NAME=RUN[,RUN…]...", help="an experiment and its runs, which differ in the seed")]
Columns = Annotated[str | None, typer.Option(
    help="comma-separated: SET@DATA, or FOLDER:SET@DATA for a stage two in the run "
         "[default: all that any run has]", rich_help_panel=SHOWN)]
ResultsClasses = Annotated[str | None, typer.Option(
    help="comma-separated names: means over these instead of all", rich_help_panel=HOW)]
Markdown = Annotated[bool, typer.Option(
    "--markdown", help="print the table as Markdown", rich_help_panel=SHOWN)]


@app.command(rich_help_panel=LOOK)
def results(
    experiments: Experiments,
    columns: Columns = None,
    classes: ResultsClasses = None,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Several experiments in one table, from the scores that `evaluate --save` wrote into their
    runs: mean and spread over the runs.

    Example: `python -m more results full=quickstart/run`

    `python -m more results full=runs/a1,runs/a2 plain=runs/b1,runs/b2
    --columns "seeds/lam@train,two:masks/val@val"`
    """
    from more.evaluation.experiments import read_experiments

    if markdown and as_json:
        raise UserError("--markdown and --json are two forms of the same", "give one of them")
    notes: list[str] = []
    found = read_experiments(experiments, _names(columns), _names(classes), notes)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    if as_json:
        show_json(found.to_json())
        return
    from more.evaluation.experiments_table import experiments_markdown, experiments_table

    if markdown:
        print(experiments_markdown(found))
    else:
        from rich.console import Console

        screen = Console()
        screen.print(experiments_table(found, screen.width))
    tell_next(line("results", *experiments, "--markdown" if not markdown else "--json"))


def _names(text: str | None) -> list[str] | None:
    """The parts of a comma-separated option."""
    return None if text is None else [name.strip() for name in text.split(",")]
