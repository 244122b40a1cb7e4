"""`python -m more bench NAME`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from more.commands.next_lines import line
from more.commands.options import AsJson, Overrides, one_of, tell_next

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown",
                  help="Measure parts of the system; ratios within one run.")


@app.command()
def data(
    shards: Annotated[Path | None, typer.Option(
        "--data", help="shard set with images [default: drawn pictures of 500×375]")] = None,
    images: Annotated[int, typer.Option(min=16, help="images to take")] = 256,
    crop: Annotated[int, typer.Option(min=16, help="side of the training crop in pixels")] = 448,
    workers: Annotated[int, typer.Option(min=0, help="loader processes; 0 = one per core")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="rounds that count")] = 5,
    pipeline: Annotated[str, typer.Option(help="device or pil, as data.pipeline")] = "device",
    as_json: AsJson = False,
) -> None:
    """Reading, decoding, augmenting and the whole loader, against plain files.

    Example: `python -m more bench data --data quickstart/data/train`
    """
    one_of("--pipeline", pipeline, ("device", "pil"))
    from more.bench.bench_data import bench_data, write_pictures
    from more.bench.measure import show

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="more-bench-") as scratch:
        plain = Path(scratch) / "plain"
        plain.mkdir()
        source = shards or write_pictures(Path(scratch) / "set", images)
        lines, about = bench_data(source, plain, images=images, crop=crop,
                                  workers=workers or cores, rounds=rounds, pipeline=pipeline)
    show("data", lines, {"cores": cores, **about}, "image", as_json)
    tell_next(line("bench", "train"), as_json)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings file [default: configs/shapes_micro.py at 64 px]")] = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="updates in a block")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="rounds that count")] = 5,
    step_only: Annotated[bool, typer.Option(
        "--step-only", help="leave out DeepSpeed and checkpoints")] = False,
    backend: Annotated[str, typer.Option(
        "--compile", help="also time a step with compiled blocks, e.g. inductor")] = "",
    picture: Annotated[Path | None, typer.Option(
        "--profile", help="file for a picture of the step by part, e.g. step.png")] = None,
    as_json: AsJson = False,
) -> None:
    """A step by part, its operations and the machine's; DeepSpeed against a bare PyTorch loop;
    the cost of a checkpoint.

    Example: `python -m more bench train --config configs/shapes_micro.py --profile step.png`
    """
    from more.bench.bench_train import StepChoice, run

    run(config, steps, rounds, as_json, overrides or [],
        StepChoice(step_only, None, backend, picture))
    tell_next(line("bench", "scale", *(["--config", config] if config else [])), as_json)


@app.command()
def scale(
    config: Annotated[Path, typer.Option("--config", help="settings file")] = Path(
        "configs/voc12_vit_b.py"),
    overrides: Overrides = None,
    gpus: Annotated[str, typer.Option(help="numbers of GPUs, separated by commas")] = "1,8,64",
    images: Annotated[int, typer.Option(
        min=0, help="images of a GPU in an update; 0 = as many as the recipe's global batch")] = 0,
    bandwidth: Annotated[float, typer.Option(
        min=0.001, help="GB/s that a GPU sends and receives at once")] = 25.0,
    latency: Annotated[float, typer.Option(min=0, help="µs of a small reduction per hop")] = 10.0,
    tflops: Annotated[float, typer.Option(
        min=0.001, help="TFLOP/s that a GPU reaches in training, not its data sheet's")] = 100.0,
    losses_ms: Annotated[float, typer.Option(
        min=0, help="ms of labels and losses per image, as `bench train` measures them")] = 10.0,
    image_ms: Annotated[float, typer.Option(
        min=0, help="ms of one loader process per image, as `bench data` measures it")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Predict the time of an update on many GPUs and what it is spent on.

    Operations and bytes are counted from the settings, throughputs are yours.

    Example: `python -m more bench scale --config configs/coco14_vit_b.py --gpus 1,8,64
    --bandwidth 25 --tflops 120`
    """
    from more.bench.bench_scale import Machine, run

    machine = Machine(bandwidth * 1e9, latency * 1e-6, tflops * 1e12, losses_ms * 1e-3,
                      image_ms * 1e-3)
    run(config, overrides or [], gpus, images, machine, as_json)
    tell_next(line("train", config, "--train", "SET", "--dry-run"), as_json)


@app.command()
def refine(
    shards: Annotated[Path | None, typer.Option(
        "--data", help="shard set with images [default: drawn pictures of 500×375]")] = None,
    seeds: Annotated[Path | None, typer.Option(help="seeds of these images")] = None,
    images: Annotated[int, typer.Option(min=1, help="images to take")] = 24,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one per core")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="rounds that count")] = 3,
    project: Annotated[list[str] | None, typer.Option(
        help="voc, coco or NAME:IMAGES:LABELS; repeatable [default: voc and coco]")] = None,
    cores: Annotated[str, typer.Option(help="cores to project to")] = "16,64",
    as_json: AsJson = False,
) -> None:
    """Dense-CRF workers: overhead, scaling, numbers of labels, hours for whole data sets.

    Example: `python -m more bench refine --project coco --cores 16,64`
    """
    from more.bench.bench_refine import run

    run(shards, seeds, images=images, workers=workers, rounds=rounds, projects=project,
        cores=cores, as_json=as_json)
    tell_next(line("refine", seeds or "SEEDS", "--data", shards or "SET", "--out", "MASKS"),
              as_json)
