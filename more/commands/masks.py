"""From a trained network to masks: seeds, dense CRF and its settings, own pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.options import (
    RUN_NAMES,
    AsJson,
    Checkpoint,
    Data,
    Overrides,
    Palette,
    Run,
    app,
    one_of,
)
from more.errors import UserError

if TYPE_CHECKING:
    from more.progress import Tally
    from more.tuning.tune_result import TuneResult

Maps = Annotated[list[str] | None, typer.Option(
    "--map", help="cam, lam, fused or decoder; repeat for several, each gets a sub-folder of "
                  "--out [default: lam]")]
Tags = Annotated[str, typer.Option(
    "--tags", help="true: the data set's image tags; predicted: the classifier's")]
LocalizeOverrides = Annotated[list[str] | None, typer.Option(
    "--set", help="inference.key=value in place of the run's, such as inference.spread=4; "
                  "repeatable")]
WithinTags = Annotated[bool, typer.Option(
    "--within-tags", help="decoder: choose among the background and the image's classes alone, "
                          "for masks to train on again")]
Batch = Annotated[int, typer.Option(
    min=0, help="images a forward; 0 = inference.batch")]


@app.command()
def localize(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="where the seed shards go")],
    maps: Maps = None,
    tags: Tags = "true",
    overrides: LocalizeOverrides = None,
    within_tags: WithinTags = False,
    checkpoint: Checkpoint = "latest",
    batch: Batch = 0,
) -> None:
    """Compute seeds (CAM, LAM, fused maps, decoder probabilities), multi-scale with flips.

    Example: `python -m more localize --run checkpoints/shapes --data data/shapes_train
    --out checkpoints/shapes/seeds --map cam --map lam`
    """
    from more.inference.localize import localize as job
    from more.inference.localizer import KINDS, Request
    from more.jobs.ranks import announced_world

    kinds = tuple(dict.fromkeys(maps or ["lam"]))
    one_of("--tags", tags, ("true", "predicted"))
    for kind in kinds:
        one_of("--map", kind, KINDS)
    rank, world = announced_world()
    request = Request(kinds, tags, batch, within_tags)
    tally = job(run, data, out, request, checkpoint, rank, world, overrides=overrides or [])
    tally.print()
    raise typer.Exit(tally.exit_code)


Config = Annotated[Path | None, typer.Option(
    "--config", help="settings with a crf section [default: released values]")]
Executor = Annotated[str, typer.Option(
    help="local: processes of this machine; ranks: this is one of the processes of torchrun, "
         "srun or a SLURM job array; dask://HOST:PORT or a scheduler file: the workers of a "
         "dask cluster; see launch/README.md")]
Workers = Annotated[int, typer.Option(
    min=0, help="processes (of each rank); 0 = one per core, or all workers of the cluster")]
Device = Annotated[str, typer.Option(
    help="cpu, cuda:N, or cuda for all GPUs of this machine; a GPU takes the lattice")]
RefineBatch = Annotated[int, typer.Option(
    min=0, help="images of one size and number of labels that --engine lattice takes at a "
                "time; 0 = 1 on the CPU, 8 on a GPU")]
IgnoreBelow = Annotated[float, typer.Option(
    min=0, max=1, help="pixels of lower confidence become 255; 0 = off")]
Threshold = Annotated[str, typer.Option(
    help="value of a class map, above 0 and below 1, at which class and background are "
         "equally likely; auto: the value that best separates the seeds' own values, by Otsu's "
         "method, no mask is looked at; not for decoder seeds")]
IgnoreDisagreement = Annotated[bool, typer.Option(
    "--ignore-disagreement", help="pixels whose label the CRF changed become 255")]
MaxPixels = Annotated[int, typer.Option(
    "--max-pixels", min=0, help="refine larger images at so many pixels and bring their labels "
    "back by nearest neighbour, for photographs of many megapixels; 0 = off")]


@app.command()
def refine(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="where the mask shards go")],
    config: Config = None,
    overrides: Overrides = None,
    executor: Executor = "local",
    workers: Workers = 0,
    engine: Annotated[str, typer.Option(help="auto, fast, pydensecrf, lattice or exact")] = "auto",
    device: Device = "cpu",
    batch: RefineBatch = 0,
    ignore_below: IgnoreBelow = 0.0,
    threshold: Threshold = "0.5",
    ignore_disagreement: IgnoreDisagreement = False,
    max_pixels: MaxPixels = 0,
) -> None:
    """Dense CRF over seed shards on CPU workers; writes label and confidence maps.

    Example: `python -m more refine checkpoints/shapes/seeds/lam --data data/shapes_train
    --out checkpoints/shapes/masks/lam`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.parameters import ENGINES, CRFParams
    from more.progress import Tally
    from more.refinement.image import Refinement
    from more.refinement.refine import refine as job

    one_of("--engine", engine, ("auto", *ENGINES))
    params = CRFParams(**asdict(load_config(config, overrides or []).crf))
    how = Refinement(params, engine, ignore_below or None, _threshold(threshold),
                     ignore_disagreement, max_pixels=max_pixels)
    tally = job(seeds, data, out, how, workers=workers or None, executor=executor,
                device=device, batch=batch,
                report=Tally.print)
    raise typer.Exit(tally.exit_code)


def _threshold(text: str) -> float | str:
    """`auto` or a number."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise UserError(f"--threshold {text}: not a number", "give auto, or a value between 0 and "
                        "1") from None


Inputs = Annotated[list[str], typer.Argument(
    metavar="INPUT", help="images, folders (with their sub-folders), patterns in quotes, or "
                          "- for a list of paths on stdin")]
PredictRun = Annotated[Path, typer.Option(
    *RUN_NAMES, help="run folder, or a file of `more export-weights`")]
Out = Annotated[Path, typer.Option("--out", help="folder for NAME.png, NAME_overlay.jpg and "
                                                "NAME.json; sub-folders are kept")]
Kind = Annotated[str, typer.Option(
    "--map", help="decoder, lam, cam or fused; auto: the decoder of stage two (RUN itself or "
                  "RUN/two) if there is one, else lam")]
PredictTags = Annotated[str, typer.Option(
    help="predicted: the classifier's; or a file of tags, as data_tools.folder "
         "takes")]
TagThreshold = Annotated[float | None, typer.Option(
    min=0, max=1, help="probability from which a class is predicted "
                       "[default: inference.tag_threshold]")]
PredictDevice = Annotated[str, typer.Option(
    help="cpu, cuda or cuda:N [default: a GPU if there is one]")]


@app.command()
def predict(
    inputs: Inputs,
    run: PredictRun,
    out: Out,
    kind: Kind = "auto",
    tags: PredictTags = "predicted",
    tag_threshold: TagThreshold = None,
    crf: Annotated[bool, typer.Option(help="dense CRF at the size of the image")] = True,
    checkpoint: Checkpoint = "latest",
    batch: Batch = 0,
    overlay: Annotated[bool, typer.Option(help="also paint the mask over the image")] = True,
    device: PredictDevice = "",
    palette: Palette = "voc",
) -> None:
    """Masks and overlays of your own pictures; no shards needed. Finished ones are skipped.

    Example: `python -m more predict holiday 'photos/**/*.png' --run shapes.safetensors --out masks`
    """
    from more.inference.localizer import KINDS
    from more.inference.predict import choose_device
    from more.inference.predict import predict as job
    from more.inference.predict_job import Options

    one_of("--map", kind, ("auto", *KINDS))
    options = Options(kind, None if tags == "predicted" else Path(tags), tag_threshold, crf, batch,
                      overlay, palette)
    tally = job(inputs, run, out, options, checkpoint, choose_device(device), sys.stdin.buffer)
    tally.print()
    raise typer.Exit(tally.exit_code)


TuneOut = Annotated[Path, typer.Option("--out", help="folder for tune.json, tune.png and what was "
                                                "counted; later grids reuse it")]
Grid = Annotated[list[str] | None, typer.Option(
    "--grid", metavar="KEY=V1,V2,…",
    help="threshold, ignore_below (0 = off) or crf.FIELD with its values; repeatable "
         "[default: threshold=0.3,0.4,0.5,0.6 and crf.bilateral_rgb=3,5,10]")]
Images = Annotated[int, typer.Option(
    min=1, help="labelled images to try the settings on, spread over the classes")]
Seed = Annotated[int, typer.Option(
    min=0, help="chooses other images, other points of --random")]
Random = Annotated[int | None, typer.Option(
    "--random", min=1, help="try this many points of the grid only")]
Axes = Annotated[str | None, typer.Option(
    help="two settings for the heat map, as a,b [default: the most influential]")]
MinKept = Annotated[float, typer.Option(
    min=0, max=1, help="points that label a smaller share of the pixels cannot be the best")]
TuneExecutor = Annotated[str, typer.Option(
    help="local; ranks: images spread over torchrun's or SLURM's ranks; or dask://HOST:PORT")]


@app.command()
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
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one per core")] = 0,
    executor: TuneExecutor = "local",
    engine: Annotated[str, typer.Option(help="auto, fast, pydensecrf, lattice or exact")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Try thresholds and CRF parameters on labelled images; prints the `refine` line of the best.

    Example: `python -m more tune checkpoints/shapes/seeds/lam --data data/shapes_train
    --out checkpoints/shapes/tune --images 100`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.crf import ENGINES, CRFParams
    from more.refinement.image import Refinement
    from more.tuning.tune import Search
    from more.tuning.tune import tune as job
    from more.tuning.tune_result import refine_command

    def show(result: TuneResult | None, tally: Tally) -> None:
        if result is not None:
            command = None if result.best == result.reference else refine_command(
                result.points[result.best], str(seeds), str(data), str(out / "masks"), engine)
            _show_best(result, command, as_json)
        tally.print()

    one_of("--engine", engine, ("auto", *ENGINES))
    base = Refinement(CRFParams(**asdict(load_config(config, overrides or []).crf)), engine)
    search = Search(tuple(grid or ()), base, images, seed, random, axes, min_kept)
    _, tally = job(seeds, data, out, search, workers or None, executor, report=show)
    raise typer.Exit(tally.exit_code)


def _show_best(result: TuneResult, command: str | None, as_json: bool) -> None:
    """Print what `more tune` found, and the command of its best point; there is none where the
    present settings are the best."""
    import json

    from rich.console import Console

    if as_json:
        print(json.dumps({**result.to_json(), "command": command}, indent=1, allow_nan=False))
    else:
        Console().print(result.table())
        print(result.verdict())
        if command is not None:
            print(f"the best point as a command:\n{command}")
