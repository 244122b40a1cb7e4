"""`python -m more bench NAME`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown",
                  help="Measure parts of the system; ratios within one run.")
AsJson = Annotated[bool, typer.Option("--json", help="print figures as JSON on stdout")]


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

    Example: `python -m more bench data --data data/voc_train`
    """
    from more.bench.data import bench_data, write_pictures
    from more.bench.measure import show
    from more.errors import UserError

    if pipeline not in ("device", "pil"):
        raise UserError(f"--pipeline {pipeline}: unknown", "choose device or pil")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="more-bench-") as scratch:
        plain = Path(scratch) / "plain"
        plain.mkdir()
        source = shards or write_pictures(Path(scratch) / "set", images)
        lines, about = bench_data(source, plain, images=images, crop=crop,
                                  workers=workers or cores, rounds=rounds, pipeline=pipeline)
    show("data", lines, {"cores": cores, **about}, "image", as_json)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings file [default: configs/shapes_micro.py at 64 px]")] = None,
    steps: Annotated[int, typer.Option(min=1, help="updates in a block")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="rounds that count")] = 5,
    as_json: AsJson = False,
) -> None:
    """An update under DeepSpeed against a bare PyTorch loop; the cost of a checkpoint.

    Example: `python -m more bench train --config configs/shapes_micro.py`
    """
    from more.bench.train import run

    run(config, steps, rounds, as_json)
