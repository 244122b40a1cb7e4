"""The settings of the dense CRF, tried on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.masks import Config, Engine, Workers
from more.commands.options import (
    HOW,
    MEASURE,
    PLACES,
    SHOWN,
    SPEED,
    AsJson,
    Data,
    Overrides,
    app,
    one_of,
    show_json,
)

if TYPE_CHECKING:
    from more.progress import Tally
    from more.tuning.tune_result import TuneResult

TuneOut = Annotated[Path, typer.Option("--out", help="folder for tune.json, tune.png and what was "
                                                "counted; later grids reuse it",
    rich_help_panel=PLACES)]
Grid = Annotated[list[str] | None, typer.Option(
    "--grid", metavar="KEY=V1,V2,…",
    help="threshold, ignore_below (0 = off) or crf.FIELD with its values; repeatable "
         "[default: threshold=0.3,0.4,0.5,0.6 and crf.bilateral_rgb=3,5,10]", rich_help_panel=HOW)]
Images = Annotated[int, typer.Option(
    min=1, help="labelled images to try the settings on, spread over the classes",
    rich_help_panel=HOW)]
Seed = Annotated[int, typer.Option(
    min=0, help="chooses other images, other points of --random", rich_help_panel=HOW)]
Random = Annotated[int | None, typer.Option(
    "--random", min=1, help="try this many points of the grid only", rich_help_panel=HOW)]
Axes = Annotated[str | None, typer.Option(
    help="two settings for the heat map, as a,b [default: the most influential]",
    rich_help_panel=SHOWN)]
MinKept = Annotated[float, typer.Option(
    min=0, max=1, help="points that label a smaller share of the pixels cannot be the best",
    rich_help_panel=HOW)]
TuneExecutor = Annotated[str, typer.Option(
    help="local; ranks: images spread over torchrun's or SLURM's ranks; or dask://HOST:PORT",
    rich_help_panel=SPEED)]


@app.command(rich_help_panel=MEASURE)
def tune(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: TuneOut,
    grid: Grid = None,
    images: Images = 200,
    seed: Seed = 0,
    random: Random = None,
    axes: Axes = None,
    min_kept: MinKept = 0.9,
    config: Config = None,
    overrides: Overrides = None,
    workers: Workers = 0,
    executor: TuneExecutor = "local",
    engine: Engine = "auto",
    as_json: AsJson = False,
) -> None:
    """Try thresholds and CRF parameters on labelled images; prints the `refine` line of the best.

    Example: `python -m more tune quickstart/run/seeds/lam --data quickstart/data/train
    --out quickstart/run/tune --images 100`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.crf import ENGINES, CRFParams
    from more.refinement.image import Refinement
    from more.tuning.tune import Search
    from more.tuning.tune import tune as job
    from more.tuning.tune_result import refine_command

    def show(result: TuneResult | None, tally: Tally) -> None:
        """Print the tally, and the best point if one was found."""
        tally.print()
        if result is not None:
            command = None if result.best == result.reference else refine_command(
                result.points[result.best], str(seeds), str(data), str(out / "masks"), engine)
            _show_best(result, command, as_json)

    one_of("--engine", engine, ("auto", *ENGINES))
    base = Refinement(CRFParams(**asdict(load_config(config, overrides or []).crf)), engine)
    search = Search(tuple(grid or ()), base, images, seed, random, axes, min_kept)
    _, tally = job(seeds, data, out, search, workers or None, executor, report=show)
    raise typer.Exit(tally.exit_code)


def _show_best(result: TuneResult, command: str | None, as_json: bool) -> None:
    """Print what `more tune` found, and the command of its best point; there is none where the
    present settings are the best."""
    from rich.console import Console

    if as_json:
        show_json({**result.to_json(), "command": command})
    else:
        Console().print(result.table())
        print(result.verdict())
        if command is not None:
            print(f"next: {command}")
