"""What leaves a run: masks and weights as files, and the page to look at."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from more.commands.options import Checkpoint, Palette, Run, app, one_of
from more.progress import say

Out = Annotated[Path, typer.Option(
    "--out", help="png, training: a folder; rle: NAME.json; voc-server: NAME.tar.gz")]
Format = Annotated[str, typer.Option(
    help="png: one index PNG per image, classes.txt and colours.csv; rle: COCO JSON with run "
         "lengths; voc-server: the archive for VOC's test server; training: a folder for "
         "supervised training")]
WithPalette = Annotated[bool | None, typer.Option(
    "--palette/--no-palette", help="png: with the VOC colour palette [default: palette]")]
Data = Annotated[Path | None, typer.Option(
    "--data", help="image set of the masks; training: required; rle: for COCO's category ids "
                   "and file endings")]
Panoptic = Annotated[bool, typer.Option(
    "--panoptic", help="rle: panoptic style, segments as PNG in the folder NAME")]
ListFile = Annotated[Path | None, typer.Option(
    "--list", help="voc-server: the masks must have exactly these ids, one a line")]
FillIgnore = Annotated[str | None, typer.Option(
    "--fill-ignore", help="voc-server: background, what pixels of value 255 become "
                          "[default: such masks are refused]")]
ValShare = Annotated[float | None, typer.Option(
    "--val-share", help="training: part of the images for validation [default: 0.1]")]
Seed = Annotated[int | None, typer.Option(
    min=0, max=2**32 - 1, help="training: another seed, other images for validation "
                               "[default: 0]")]
WeightsFormat = Annotated[str | None, typer.Option(
    "--format", help="safetensors, onnx or pt2 (torch.export) [default: by the ending of --out]")]
PROGRAMS = {"onnx": "onnxruntime.InferenceSession", "pt2": "torch.export.load(FILE).module()"}


@app.command()
def export(
    masks: Annotated[Path, typer.Argument(help="mask shards made by `more refine`")],
    out: Out,
    format: Format = "png",
    palette: WithPalette = None,
    data: Data = None,
    panoptic: Panoptic = False,
    list_file: ListFile = None,
    fill_ignore: FillIgnore = None,
    val_share: ValShare = None,
    seed: Seed = None,
) -> None:
    """Write masks as files that other tools read.

    Example: `python -m more export checkpoints/shapes/masks/lam --format png --out masks_png`

    `python -m more export MASKS --format rle --data SET --out masks.json`

    `python -m more export MASKS --format voc-server --list test.txt --out results.tar.gz`

    `python -m more export MASKS --format training --data SET --out training`
    """
    from more.export import FORMATS, export_masks

    one_of("--format", format, tuple(FORMATS))
    tally = export_masks(masks, out, format, palette=palette, data=data, panoptic=panoptic or None,
                         list=list_file, fill_ignore=fill_ignore, val_share=val_share, seed=seed)
    tally.print()
    say(f"next: {_after_export(format, out, tally.exit_code)}")
    raise typer.Exit(tally.exit_code)


def _after_export(format: str, out: Path, failed: int) -> str:
    """What to do with an export."""
    place = shlex.quote(str(out))
    if failed:
        return ("the failed ones are named above; make their masks again with `more refine`, then "
                "run the same command again")
    if format == "png":
        return (f"use {place} with its classes.txt; shards again: python -m data_tools.folder "
                f"IMAGES SET --masks {place} --classes {shlex.quote(str(out / 'classes.txt'))}")
    if format == "rle":
        return ("load it with pycocotools; shards again: python -m data_tools.coco "
                f"{place} IMAGES SET")
    if format == "voc-server":
        return f"upload {place} to VOC's test server as an entry of comp6"
    return (f"pip install segmentation-models-pytorch && python "
            f"{shlex.quote(str(out / 'train_example.py'))} --epochs 20")


@app.command("export-weights")
def export_weights(
    run: Run,
    out: Annotated[Path, typer.Option(
        "--out", help="file to write, NAME.safetensors, NAME.onnx or NAME.pt2")],
    checkpoint: Checkpoint = "latest",
    format: WeightsFormat = None,
) -> None:
    """One safetensors file with weights, settings and classes; `predict --run FILE` takes it.

    As ONNX or as a program of torch.export: the network with its decoder, for use without this
    package. The file is compared with the network; NAME.onnx.json says how to feed it.

    Example: `python -m more export-weights --run checkpoints/shapes --out shapes.safetensors`

    `python -m more export-weights --run checkpoints/shapes/two --out shapes.onnx`
    """
    from more.inference.load import export_weights as job
    from more.inference.portable import choose_format, export_network

    kind = choose_format(out, format)
    if kind == "safetensors":
        print(job(run, out, checkpoint))
        say(f"next: python -m more predict PICTURES --run {shlex.quote(str(out))} --out masks")
        return
    made = export_network(run, out, kind, checkpoint)
    print(made.path)
    say(f"compared with torch on random pixels: largest difference {made.difference:.1e}, of "
        f"logits up to {made.largest:.1e}")
    say(f"next: run it, e.g. with {PROGRAMS[kind]}; {made.facts} says how to prepare pictures")


@app.command()
def report(
    run: Run,
    data: Annotated[Path | None, typer.Option(
        "--data", help="images and truth [default: as recorded with the seeds]")] = None,
    images: Annotated[int, typer.Option(
        min=1, help="training images on the page; half as many new ones")] = 12,
    strip: Annotated[Path | None, typer.Option(
        "--strip", help="instead of the page one picture with captions (.png, .jpg): --images "
                        "training images with their maps, as many new ones with stage two's masks"
        )] = None,
    seed: Annotated[int, typer.Option(min=0, help="--strip: chooses other images")] = 0,
    palette: Palette = "voc",
    out: Annotated[Path | None, typer.Option(
        "--out", help="the page [default: RUN/report.html]")] = None,
) -> None:
    """One HTML file with scores, pictures and curves that opens from disk.

    Example: `python -m more report --run checkpoints/shapes`

    `python -m more report --run checkpoints/shapes --strip shapes.jpg --images 3`
    """
    if strip is not None:
        from more.evaluation.strip import draw_strip

        print(draw_strip(run, strip, images, seed, palette))
        return
    from more.evaluation.report import build_report

    print(build_report(run, data, images, palette, out))
