"""What leaves a run: masks and weights as files, and the page to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.next_lines import after_export, line, step_of
from more.commands.options import (
    HOW,
    LOOK,
    MASKS,
    PLACES,
    SHOWN,
    AsJson,
    Checkpoint,
    Palette,
    Run,
    app,
    end,
    one_of,
    show_json,
    tell_next,
)
from more.progress import say

if TYPE_CHECKING:
    from more.data.seeds import SeedItem
    from more.data.shards.reader import ShardSet

Out = Annotated[Path, typer.Option(
    "--out", help="png, training: a folder; rle: NAME.json; voc-server: NAME.tar.gz",
    rich_help_panel=PLACES)]
Format = Annotated[str, typer.Option(
    help="png: one index PNG per image, classes.txt and colours.csv; rle: COCO JSON with run "
         "lengths; voc-server: the archive for VOC's test server; training: a folder for "
         "supervised training", rich_help_panel=HOW)]
WithPalette = Annotated[bool | None, typer.Option(
    "--palette/--no-palette", help="png: with the VOC colour palette [default: palette]",
    rich_help_panel=SHOWN)]
Data = Annotated[Path | None, typer.Option(
    "--data", help="image set of the masks; training: required; rle: for COCO's category ids "
                   "and file endings", rich_help_panel=PLACES)]
Panoptic = Annotated[bool, typer.Option(
    "--panoptic", help="rle: panoptic style, segments as PNG in the folder NAME",
    rich_help_panel=HOW)]
ListFile = Annotated[Path | None, typer.Option(
    "--list", help="voc-server: the masks must have exactly these ids, one a line",
    rich_help_panel=PLACES)]
FillIgnore = Annotated[str | None, typer.Option(
    "--fill-ignore", help="voc-server: background, what pixels of value 255 become "
                          "[default: such masks are refused]", rich_help_panel=HOW)]
ValShare = Annotated[float | None, typer.Option(
    "--val-share", help="training: part of the images for validation [default: 0.1]",
    rich_help_panel=HOW)]
Seed = Annotated[int | None, typer.Option(
    min=0, max=2**32 - 1, help="training: another seed, other images for validation "
                               "[default: 0]", rich_help_panel=HOW)]
WeightsFormat = Annotated[str | None, typer.Option(
    "--format", help="safetensors, onnx or pt2 (torch.export) [default: by the ending of --out]",
    rich_help_panel=HOW)]
PROGRAMS = {"onnx": "onnxruntime.InferenceSession", "pt2": "torch.export.load(FILE).module()"}


@app.command(rich_help_panel=MASKS)
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
    as_json: AsJson = False,
) -> None:
    """Write masks as files that other tools read.

    Example: `python -m more export quickstart/run/masks/lam --format png --out masks_png`

    `python -m more export MASKS --format rle --data SET --out masks.json`

    `python -m more export MASKS --format voc-server --list test.txt --out results.tar.gz`

    `python -m more export MASKS --format training --data SET --out training`
    """
    from more.export import FORMATS, export_masks

    one_of("--format", format, tuple(FORMATS))
    tally = export_masks(masks, out, format, palette=palette, data=data, panoptic=panoptic or None,
                         list=list_file, fill_ignore=fill_ignore, val_share=val_share, seed=seed)
    end(tally, after_export(format, out), as_json, out=out)


@app.command("export-weights", rich_help_panel=MASKS)
def export_weights(
    run: Run,
    out: Annotated[Path, typer.Option(
        "--out", help="file to write, NAME.safetensors, NAME.onnx or NAME.pt2",
        rich_help_panel=PLACES)],
    checkpoint: Checkpoint = "latest",
    format: WeightsFormat = None,
    as_json: AsJson = False,
) -> None:
    """One safetensors file with weights, settings and classes; `predict --run FILE` takes it.

    As ONNX or as a program of torch.export: the network with its decoder, for use without this
    package. The file is compared with the network; NAME.onnx.json says how to feed it.

    Example: `python -m more export-weights --run quickstart/run/two --out shapes.safetensors`

    `python -m more export-weights --run quickstart/run/two --out shapes.onnx`
    """
    from more.inference.portable import choose_format, export_network
    from more.inference.trained import export_weights as job

    kind = choose_format(out, format)
    if kind == "safetensors":
        _weights_written(job(run, out, checkpoint), as_json)
        return
    made = export_network(run, out, kind, checkpoint)
    if as_json:
        show_json({"out": str(made.path), "difference": made.difference, "facts": str(made.facts)})
        return
    print(made.path)
    say(f"compared with torch on random pixels: largest difference {made.difference:.1e}, of "
        f"logits up to {made.largest:.1e}")
    tell_next(f"run it, e.g. with {PROGRAMS[kind]}; {made.facts} says how to prepare pictures")


def _weights_written(file: Path, as_json: bool) -> None:
    """Say where the weights are, and how they are used."""
    if as_json:
        show_json({"out": str(file)})
    else:
        print(file)
        tell_next(line("predict", "PICTURES", "--run", file, "--out", "masks"))


@app.command(rich_help_panel=LOOK)
def report(
    run: Run,
    data: Annotated[Path | None, typer.Option(
        "--data", help="images and truth [default: as recorded with the seeds]",
        rich_help_panel=PLACES)] = None,
    images: Annotated[int, typer.Option(
        min=1, help="training images on the page; half as many new ones",
        rich_help_panel=SHOWN)] = 12,
    strip: Annotated[Path | None, typer.Option(
        "--strip", help="instead of the page one picture with captions (.png, .jpg): --images "
                        "training images with their maps, as many new ones with stage two's "
                        "masks", rich_help_panel=SHOWN)] = None,
    seed: Annotated[int, typer.Option(
        min=0, help="--strip: chooses other images", rich_help_panel=SHOWN)] = 0,
    palette: Palette = "voc",
    decoder: Annotated[bool, typer.Option(
        "--decoder/--no-decoder", help="ask the network, of stage two if there is one, about the "
                                       "training images of the page where no stored set has its "
                                       "answer", rich_help_panel=SHOWN)] = True,
    out: Annotated[Path | None, typer.Option(
        "--out", help="the page [default: RUN/report.html]", rich_help_panel=PLACES)] = None,
    as_json: AsJson = False,
) -> None:
    """One HTML file with scores, pictures and curves that opens from disk.

    Example: `python -m more report --run quickstart/run`

    `python -m more report --run quickstart/run --strip shapes.jpg --images 3`
    """
    if strip is not None:
        from more.evaluation.strip import draw_strip

        written = draw_strip(run, strip, images, seed, palette)
    else:
        from more.evaluation.report import build_report

        written = build_report(run, data, images, palette, out, _decode if decoder else None)
    if as_json:
        show_json({"out": str(written)})
        return
    print(written)
    tell_next(step_of(run))


def _decode(run: Path, images: ShardSet, ids: Sequence[str]) -> dict[str, SeedItem] | None:
    """The decoder's answer; PyTorch is loaded only where it is asked."""
    from more.inference.decoder_pictures import decoder_seeds

    return decoder_seeds(run, images, ids)
