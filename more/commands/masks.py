"""From a trained network to masks: seeds, dense CRF, own pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.next_lines import after_localize, after_refine
from more.commands.options import (
    HOW,
    MASKS,
    PLACES,
    RUN_NAMES,
    SHOWN,
    SPEED,
    START,
    AsJson,
    Checkpoint,
    Data,
    Overrides,
    Palette,
    Run,
    app,
    end,
    one_of,
    tell,
)
from more.errors import UserError

if TYPE_CHECKING:
    from more.progress import Tally

Maps = Annotated[list[str] | None, typer.Option(
    "--map", help="cam, lam, fused or decoder; repeat for several, each gets a sub-folder of "
                  "--out [default: lam]", rich_help_panel=HOW)]
SeedsOut = Annotated[Path, typer.Option(
    "--out", help="where the seed shards go", rich_help_panel=PLACES)]
Tags = Annotated[str, typer.Option(
    "--tags", help="true: the data set's image tags; predicted: the classifier's",
    rich_help_panel=HOW)]
LocalizeOverrides = Annotated[list[str] | None, typer.Option(
    "--set", help="inference.key=value in place of the run's, such as inference.spread=4, or "
                  "precision=auto (bf16 on a GPU that has it, else fp32); repeatable",
    rich_help_panel=HOW)]
WithinTags = Annotated[bool, typer.Option(
    "--within-tags", help="decoder: choose among the background and the image's classes alone, "
                          "for masks to train on again", rich_help_panel=HOW)]
Batch = Annotated[int, typer.Option(
    min=0, help="images a forward; 0 = inference.batch", rich_help_panel=SPEED)]


@app.command(rich_help_panel=MASKS)
def localize(
    run: Run,
    data: Data,
    out: SeedsOut,
    maps: Maps = None,
    tags: Tags = "true",
    overrides: LocalizeOverrides = None,
    within_tags: WithinTags = False,
    checkpoint: Checkpoint = "latest",
    batch: Batch = 0,
    as_json: AsJson = False,
) -> None:
    """Compute seeds (CAM, LAM, fused maps, decoder probabilities), multi-scale with flips.

    Example: `python -m more localize --run quickstart/run --data quickstart/data/train
    --out quickstart/run/seeds --map cam --map lam`
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
    folders = [out / kind for kind in kinds] if len(kinds) > 1 else [out]
    end(tally, after_localize(folders, data) if rank == 0 else "", as_json, rank=rank,
        seeds={kind: str(folder) for kind, folder in zip(kinds, folders, strict=True)})


MasksOut = Annotated[Path, typer.Option(
    "--out", help="where the mask shards go", rich_help_panel=PLACES)]
Engine = Annotated[str, typer.Option(
    help="auto, fast, pydensecrf, lattice or exact", rich_help_panel=SPEED)]
Config = Annotated[Path | None, typer.Option(
    "--config", help="settings with a crf section [default: released values]", rich_help_panel=HOW)]
Executor = Annotated[str, typer.Option(
    help="local: processes of this machine; ranks: this is one of the processes of torchrun, "
         "srun or a SLURM job array; dask://HOST:PORT or a scheduler file: the workers of a "
         "dask cluster; see launch/README.md", rich_help_panel=SPEED)]
Workers = Annotated[int, typer.Option(
    min=0, help="processes (of each rank); 0 = one per core, or all workers of the cluster",
    rich_help_panel=SPEED)]
Device = Annotated[str, typer.Option(
    help="cpu, cuda:N, or cuda for all GPUs of this machine; a GPU takes the lattice",
    rich_help_panel=SPEED)]
RefineBatch = Annotated[int, typer.Option(
    min=0, help="images of one size and number of labels that --engine lattice takes at a "
                "time; 0 = 1 on the CPU, 8 on a GPU", rich_help_panel=SPEED)]
IgnoreBelow = Annotated[float, typer.Option(
    min=0, max=1, help="pixels of lower confidence become 255; 0 = off", rich_help_panel=HOW)]
Threshold = Annotated[str, typer.Option(
    help="value of a class map, above 0 and below 1, at which class and background are "
         "equally likely; auto: the value that best separates the seeds' own values, by Otsu's "
         "method, no mask is looked at; not for decoder seeds", rich_help_panel=HOW)]
IgnoreDisagreement = Annotated[bool, typer.Option(
    "--ignore-disagreement", help="pixels whose label the CRF changed become 255",
    rich_help_panel=HOW)]
MaxPixels = Annotated[int, typer.Option(
    "--max-pixels", min=0, help="refine larger images at so many pixels and bring their labels "
    "back by nearest neighbour, for photographs of many megapixels; 0 = off", rich_help_panel=HOW)]


@app.command(rich_help_panel=MASKS)
def refine(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: MasksOut,
    config: Config = None,
    overrides: Overrides = None,
    executor: Executor = "local",
    workers: Workers = 0,
    engine: Engine = "auto",
    device: Device = "cpu",
    batch: RefineBatch = 0,
    ignore_below: IgnoreBelow = 0.0,
    threshold: Threshold = "0.5",
    ignore_disagreement: IgnoreDisagreement = False,
    max_pixels: MaxPixels = 0,
    as_json: AsJson = False,
) -> None:
    """Dense CRF over seed shards on CPU workers; writes label and confidence maps.

    Example: `python -m more refine quickstart/run/seeds/lam --data quickstart/data/train
    --out quickstart/run/masks/lam --threshold auto`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.parameters import ENGINES, CRFParams
    from more.refinement.image import Refinement
    from more.refinement.refine import refine as job

    one_of("--engine", engine, ("auto", *ENGINES))
    params = CRFParams(**asdict(load_config(config, overrides or []).crf))
    how = Refinement(params, engine, ignore_below or None, _threshold(threshold),
                     ignore_disagreement, max_pixels=max_pixels)
    tally = job(seeds, data, out, how, workers=workers or None, executor=executor,
                device=device, batch=batch,
                report=lambda tally: _tell_refined(tally, out, data, executor, as_json))
    raise typer.Exit(tally.exit_code)


def _tell_refined(tally: Tally, out: Path, data: Path, executor: str, as_json: bool) -> None:
    """Print what `more refine` did; the next line is for the first rank alone."""
    from more.data.shards.reader import ShardSet
    from more.device import launched_world

    rank = launched_world()[0] if executor == "ranks" else 0
    command = "" if rank else after_refine(out, data, ShardSet(data).has("mask"))
    tell(tally, command, as_json, masks=out, rank=rank)


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
    *RUN_NAMES, help="run folder, or a file of `more export-weights`", rich_help_panel=PLACES)]
Out = Annotated[Path, typer.Option("--out", help="folder for NAME.png, NAME_overlay.jpg and "
                                                "NAME.json; sub-folders are kept",
    rich_help_panel=PLACES)]
Kind = Annotated[str, typer.Option(
    "--map", help="decoder, lam, cam or fused; auto: the decoder of stage two (RUN itself or "
                  "RUN/two) if there is one, else lam", rich_help_panel=HOW)]
PredictTags = Annotated[str, typer.Option(
    help="predicted: the classifier's; or a file of tags, as data_tools.folder "
         "takes", rich_help_panel=HOW)]
TagThreshold = Annotated[float | None, typer.Option(
    min=0, max=1, help="probability from which a class is predicted "
                       "[default: inference.tag_threshold]", rich_help_panel=HOW)]
Crf = Annotated[bool, typer.Option(
    help="dense CRF at the size of the image", rich_help_panel=HOW)]
Overlay = Annotated[bool, typer.Option(
    help="also paint the mask over the image", rich_help_panel=SHOWN)]
Sheet = Annotated[bool, typer.Option(
    help="also draw the overlays in --out (at most 64) on one contact_sheet.jpg there",
    rich_help_panel=SHOWN)]
PredictDevice = Annotated[str, typer.Option(
    help="cpu, cuda or cuda:N [default: a GPU if there is one]", rich_help_panel=SPEED)]


@app.command(rich_help_panel=START)
def predict(
    inputs: Inputs,
    run: PredictRun,
    out: Out,
    kind: Kind = "auto",
    tags: PredictTags = "predicted",
    tag_threshold: TagThreshold = None,
    crf: Crf = True,
    checkpoint: Checkpoint = "latest",
    batch: Batch = 0,
    overlay: Overlay = True,
    sheet: Sheet = True,
    device: PredictDevice = "",
    palette: Palette = "voc",
    as_json: AsJson = False,
) -> None:
    """Masks and overlays of your own pictures; no shards needed. Finished ones are skipped.

    Pictures in which no class was found are named at the end.

    Example: `python -m more predict quickstart/data/shapes/JPEGImages --run quickstart/run
    --out new_masks`

    `python -m more predict holiday 'photos/**/*.png' --run shapes.safetensors --out masks`
    """
    from more.inference.contact_sheet import contact_sheet
    from more.inference.localizer import KINDS
    from more.inference.predict import choose_device
    from more.inference.predict import predict as job
    from more.inference.predict_job import Options

    one_of("--map", kind, ("auto", *KINDS))
    options = Options(kind, None if tags == "predicted" else Path(tags), tag_threshold, crf, batch,
                      overlay, palette, sheet)
    tally = job(inputs, run, out, options, checkpoint, choose_device(device), sys.stdin.buffer)
    seen = sheet and contact_sheet(out) or out
    end(tally, f"look at {seen}; NAME.json has the classes and pixels of each picture", as_json,
        out=out)
