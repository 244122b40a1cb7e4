"""From a trained network to masks: seeds, dense CRF, own pictures, weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from more.commands.common import RUN_NAMES, Data, Overrides, Run, app, one_of
from more.errors import UserError


@app.command()
def localize(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="where the seed shards go")],
    maps: Annotated[list[str] | None, typer.Option(
        "--map", help="cam, lam, fused or decoder; repeat for several, each gets a sub-folder of "
                      "--out [default: lam]")] = None,
    tags: Annotated[str, typer.Option(
        "--tags", help="true: the data set's image tags; predicted: the classifier's")] = "true",
    overrides: Annotated[list[str] | None, typer.Option(
        "--set", help="inference.key=value in place of the run's, such as inference.spread=4; "
                      "repeatable")] = None,
    within_tags: Annotated[bool, typer.Option(
        "--within-tags", help="decoder: choose among the background and the image's classes alone, "
                              "for masks to train on again")] = False,
    checkpoint: Annotated[str, typer.Option(
        help="latest, best, step-NNNNNN of the run, or a checkpoint folder")] = "latest",
    batch: Annotated[int, typer.Option(
        min=0, help="images a forward; 0 = inference.batch")] = 0,
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


@app.command()
def refine(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="where the mask shards go")],
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings with a crf section [default: released values]")] = None,
    overrides: Overrides = None,
    executor: Annotated[str, typer.Option(
        help="local: processes of this machine; ranks: this is one of the processes of torchrun, "
             "srun or a SLURM job array; dask://HOST:PORT or a scheduler file: the workers of a "
             "dask cluster; see launch/README.md")] = "local",
    workers: Annotated[int, typer.Option(
        min=0, help="processes (of each rank); 0 = one per core, or all workers of the cluster")
        ] = 0,
    engine: Annotated[str, typer.Option(help="auto, fast, pydensecrf, lattice or exact")] = "auto",
    device: Annotated[str, typer.Option(
        help="cpu, cuda:N, or cuda for all GPUs of this machine; a GPU takes the lattice")
        ] = "cpu",
    batch: Annotated[int, typer.Option(
        min=0, help="images of one size and number of labels that --engine lattice takes at a "
                    "time; 0 = 1 on the CPU, 8 on a GPU")] = 0,
    ignore_below: Annotated[float, typer.Option(
        min=0, max=1, help="pixels of lower confidence become 255; 0 = off")] = 0.0,
    threshold: Annotated[str, typer.Option(
        help="value of a class map, above 0 and below 1, at which class and background are "
             "equally likely; auto: the value that best separates the seeds' own values, by Otsu's "
             "method, no mask is looked at; not for decoder seeds")] = "0.5",
    ignore_disagreement: Annotated[bool, typer.Option(
        "--ignore-disagreement", help="pixels whose label the CRF changed become 255")] = False,
    max_pixels: Annotated[int, typer.Option(
        "--max-pixels", min=0, help="refine larger images at so many pixels and bring their labels "
        "back by nearest neighbour, for photographs of many megapixels; 0 = off")] = 0,
) -> None:
    """Dense CRF over seed shards on CPU workers; writes label and confidence maps.

    Example: `python -m more refine checkpoints/shapes/seeds/lam --data data/shapes_train
    --out checkpoints/shapes/masks/lam`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.crf import ENGINES, CRFParams
    from more.progress import Tally
    from more.refine.image import Refinement
    from more.refine.refine import refine as job

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


@app.command()
def predict(
    inputs: Annotated[list[str], typer.Argument(
        metavar="INPUT", help="images, folders (with their sub-folders), patterns in quotes, or "
                              "- for a list of paths on stdin")],
    run: Annotated[Path, typer.Option(
        *RUN_NAMES, help="run folder, or a file of `more export-weights`")],
    out: Annotated[Path, typer.Option("--out", help="folder for NAME.png, NAME_overlay.jpg and "
                                                    "NAME.json; sub-folders are kept")],
    kind: Annotated[str, typer.Option(
        "--map", help="decoder, lam, cam or fused; auto: the decoder of stage two (RUN itself or "
                      "RUN/two) if there is one, else lam")] = "auto",
    tags: Annotated[str, typer.Option(
        help="predicted: the classifier's; or a file of tags, as data_tools.folder "
             "takes")] = "predicted",
    tag_threshold: Annotated[float | None, typer.Option(
        min=0, max=1, help="probability from which a class is predicted "
                           "[default: inference.tag_threshold]")] = None,
    crf: Annotated[bool, typer.Option(help="dense CRF at the size of the image")] = True,
    checkpoint: Annotated[str, typer.Option(
        help="latest, best, step-NNNNNN of the run, or a checkpoint folder")] = "latest",
    batch: Annotated[int, typer.Option(
        min=0, help="images a forward; 0 = inference.batch")] = 0,
    overlay: Annotated[bool, typer.Option(help="also paint the mask over the image")] = True,
    device: Annotated[str, typer.Option(
        help="cpu, cuda or cuda:N [default: a GPU if there is one]")] = "",
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
                      overlay)
    tally = job(inputs, run, out, options, checkpoint, choose_device(device), sys.stdin.buffer)
    tally.print()
    raise typer.Exit(tally.exit_code)


@app.command("export-weights")
def export_weights(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="file to write, NAME.safetensors")],
    checkpoint: Annotated[str, typer.Option(
        help="latest, best, step-NNNNNN of the run, or a checkpoint folder")] = "latest",
) -> None:
    """One safetensors file with weights, settings and classes; `localize --run FILE` takes it.

    Example: `python -m more export-weights --run checkpoints/shapes --out shapes.safetensors`
    """
    from more.inference.load import export_weights as job

    print(job(run, out, checkpoint))
