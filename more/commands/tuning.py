"""Search for settings that serve a set of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from more.commands.common import AsJson, Data, Overrides, app, one_of


@app.command()
def tune(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="folder for tune.json, tune.png and what was "
                                                    "counted; later grids reuse it")],
    grid: Annotated[list[str] | None, typer.Option(
        "--grid", metavar="KEY=V1,V2,…",
        help="threshold, ignore_below (0 = off) or crf.FIELD with its values; repeatable "
             "[default: threshold=0.3,0.4,0.5,0.6 and crf.bilateral_rgb=3,5,10]")] = None,
    images: Annotated[int, typer.Option(
        min=1, help="labelled images to try the settings on, spread over the classes")] = 200,
    seed: Annotated[int, typer.Option(
        min=0, help="chooses other images, other points of --random")] = 0,
    random: Annotated[int | None, typer.Option(
        "--random", min=1, help="try this many points of the grid only")] = None,
    axes: Annotated[str | None, typer.Option(
        help="two settings for the heat map, as a,b [default: the most influential]")] = None,
    min_kept: Annotated[float, typer.Option(
        min=0, max=1, help="points that label a smaller share of the pixels cannot be the best"
        )] = 0.9,
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings with a crf section [default: released values]")] = None,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one per core")] = 0,
    executor: Annotated[str, typer.Option(
        help="local; ranks: images spread over torchrun's or SLURM's ranks; or dask://HOST:PORT"
        )] = "local",
    engine: Annotated[str, typer.Option(help="auto, fast, pydensecrf, lattice or exact")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Try thresholds and CRF parameters on labelled images; prints the `refine` line of the best.

    Example: `python -m more tune checkpoints/shapes/seeds/lam --data data/shapes_train
    --out checkpoints/shapes/tune --images 100`
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from more.config.load import load_config
    from more.filtering.crf import ENGINES, CRFParams
    from more.progress import Tally
    from more.refine.image import Refinement
    from more.tuning.tune import Search
    from more.tuning.tune import tune as job
    from more.tuning.tune_result import TuneResult, refine_command

    def show(result: TuneResult | None, tally: Tally) -> None:
        if result is not None:
            command = refine_command(result.points[result.best], str(seeds), str(data),
                                     str(out / "masks"), engine)
            if as_json:
                print(json.dumps({**result.to_json(), "command": command}, indent=1,
                                 allow_nan=False))
            else:
                Console().print(result.table())
                print(f"the best point as a command:\n{command}")
        tally.print()

    one_of("--engine", engine, ("auto", *ENGINES))
    base = Refinement(CRFParams(**asdict(load_config(config, overrides or []).crf)), engine)
    search = Search(tuple(grid or ()), base, images, seed, random, axes, min_kept)
    _, tally = job(seeds, data, out, search, workers or None, executor, report=show)
    raise typer.Exit(tally.exit_code)
