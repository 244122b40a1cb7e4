"""`python -m more COMMAND`: the one command line. Commands import what they need when they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from more import __version__
from more.bench.command import app as bench_app
from more.errors import UserError, from_system
from more.progress import console

app = typer.Typer(
    name="more", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
    help="Weakly supervised segmentation from tags to masks: "
         "**train** → **localize** → **refine** → **evaluate** → **export** → **report**.")

app.add_typer(bench_app, name="bench")

# Under `torchrun -m more …` Python before 3.12 takes `--run` for a short form of torchrun's own
# `--run-path` and stops; `--run-dir` is the same option under a name that it leaves alone.
RUN_NAMES = ("--run", "--run-dir")
Run = Annotated[Path, typer.Option(*RUN_NAMES, help="run folder, e.g. checkpoints/voc12_vit_b")]
Data = Annotated[Path, typer.Option("--data", help="shard set with the images")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", help="section.key=value; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="print figures as JSON on stdout")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option(
        "--version", help="print the version", callback=_print_version, is_eager=True)] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    # The deepspeed launcher puts --local_rank before the command; the environment has it too.
    del version, local_rank


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="settings, e.g. configs/voc12_vit_b.py")],
    train_set: Annotated[Path, typer.Option("--train", help="shard set with images and tags")],
    run: Annotated[Path | None, typer.Option(
        *RUN_NAMES, help="run folder [default: checkpoints/CONFIG_NAME]")] = None,
    val_set: Annotated[Path | None, typer.Option(
        "--val", help="shard set with masks, scored while training")] = None,
    overrides: Overrides = None,
    resume: Annotated[str, typer.Option(
        "--resume", help="auto: newest complete checkpoint of the run, else start; never: start "
                         "afresh, an earlier run moves to RUN/earlier-1; or a checkpoint folder"
        )] = "auto",
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="only say what would happen: batches, steps, memory per ZeRO stage")
        ] = False,
    ranks: Annotated[int, typer.Option(
        min=0, help="with --dry-run: plan for so many processes; 0 = those started")] = 0,
    as_json: Annotated[bool, typer.Option(
        "--json", help="with --dry-run: print the facts as JSON")] = False,
) -> None:
    """Train MoRe. The same command resumes an interrupted run.

    Example: `python -m more train configs/shapes_micro.py --train data/shapes_train
    --val data/shapes_val --run checkpoints/shapes`

    Several processes: `torchrun --standalone --nproc_per_node=2 -m more train … --run-dir DIR`
    (torchrun mistakes `--run` for an option of its own), or
    `deepspeed --num_gpus 2 --module more train …`
    """
    from more.config.load import load_config
    from more.data.shards.format import make_folder
    from more.data.shards.reader import ShardSet

    settings = load_config(config, overrides or [])
    from more.data.shards.quarantine import open_checked
    from more.engine.checks import check_classes
    from more.engine.distributed import launched_world, setup, teardown
    from more.engine.stop import exit_code
    from more.engine.trainer import Trainer

    share = launched_world()
    images, left_out = open_checked(train_set, quarantine=settings.data.quarantine, share=share,
                                    cache=settings.data.cache or None)
    masks = ShardSet(val_set, kind="images", check="full", share=share) if val_set else None

    check_classes(settings, images, masks)
    if dry_run:
        from more.engine.dryrun import describe, show

        if share[0] == 0:
            show(describe(settings, images, masks, ranks or share[1], resume=resume,
                          run=run or Path("checkpoints") / settings.name), as_json)
        return
    run = make_folder(run or Path("checkpoints") / settings.name)
    world = setup(settings.deepspeed.timeout_minutes, settings.train.threads)
    try:
        state = Trainer(settings, images, masks, run, world, resume, left_out).fit()
    finally:
        teardown()
    if state == "stopped":
        raise typer.Exit(exit_code())


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
    checkpoint: Annotated[str, typer.Option(
        help="latest, best, step-NNNNNN of the run, or a checkpoint folder")] = "latest",
    batch: Annotated[int, typer.Option(
        min=0, help="images a forward; 0 = inference.batch")] = 0,
) -> None:
    """Compute seeds (CAM, LAM, fused maps, decoder probabilities), multi-scale with flips.

    Example: `python -m more localize --run checkpoints/shapes --data data/shapes_train
    --out checkpoints/shapes/seeds --map cam --map lam`
    """
    from more.engine.distributed import launched_world
    from more.pseudo.localize import KINDS, Request
    from more.pseudo.localize import localize as job

    kinds = tuple(dict.fromkeys(maps or ["lam"]))
    _one_of("--tags", tags, ("true", "predicted"))
    for kind in kinds:
        _one_of("--map", kind, KINDS)
    rank, world = launched_world()
    tally = job(run, data, out, Request(kinds, tags, batch), checkpoint, rank, world)
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
    from more.engine.weights import export_weights as job

    print(job(run, out, checkpoint))


@app.command()
def refine(
    seeds: Annotated[Path, typer.Argument(help="seed shards made by `more localize`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="where the mask shards go")],
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings with a crf section [default: released values]")] = None,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one per core")] = 0,
    engine: Annotated[str, typer.Option(help="auto, pydensecrf, lattice or exact")] = "auto",
    ignore_below: Annotated[float, typer.Option(
        min=0, max=1, help="pixels of lower confidence become 255; 0 = off")] = 0.0,
) -> None:
    """Dense CRF over seed shards on CPU workers; writes label and confidence maps.

    Example: `python -m more refine checkpoints/shapes/seeds/lam --data data/shapes_train
    --out checkpoints/shapes/masks/lam`
    """
    from dataclasses import asdict

    from more.config.load import load_config
    from more.filtering.crf import CRFParams
    from more.pseudo.refine import refine as job

    _one_of("--engine", engine, ("auto", "pydensecrf", "lattice", "exact"))
    params = CRFParams(**asdict(load_config(config, overrides or []).crf))
    tally = job(seeds, data, out, workers=workers or None, params=params, engine=engine,
                ignore_below=ignore_below or None)
    tally.print()
    raise typer.Exit(tally.exit_code)


@app.command()
def predict(
    inputs: Annotated[list[str], typer.Argument(
        metavar="INPUT", help="images, folders (with their sub-folders), patterns in quotes, or "
                              "- for a list of paths on stdin")],
    run: Annotated[Path, typer.Option(
        *RUN_NAMES, help="run folder, or a file of `more export-weights`")],
    out: Annotated[Path, typer.Option("--out", help="folder for NAME.png, NAME_overlay.jpg and "
                                                    "NAME.json; sub-folders are kept")],
    kind: Annotated[str, typer.Option("--map", help="lam, cam, fused or decoder")] = "lam",
    tags: Annotated[str, typer.Option(
        help="predicted: the classifier's; or a csv file with the header id,tags")] = "predicted",
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
    from more.pseudo.localize import KINDS
    from more.pseudo.predict import choose_device
    from more.pseudo.predict import predict as job
    from more.pseudo.predict_job import Options

    _one_of("--map", kind, KINDS)
    options = Options(kind, None if tags == "predicted" else Path(tags), tag_threshold, crf, batch,
                      overlay)
    tally = job(inputs, run, out, options, checkpoint, choose_device(device), sys.stdin.buffer)
    tally.print()
    raise typer.Exit(tally.exit_code)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="mask or seed shards")],
    data: Data,
    threshold: Annotated[float | None, typer.Option(
        help="background threshold of seeds [default: as recorded]")] = None,
    sweep: Annotated[bool, typer.Option(help="score thresholds 0.1 … 0.9 as well")] = False,
    classes: Annotated[str | None, typer.Option(
        help="comma-separated names: also the mean over these")] = None,
    save: Annotated[Path | None, typer.Option(
        help="also write the JSON to this file (RUN/scores/NAME.json shows in the report)")] = None,
    as_json: AsJson = False,
) -> None:
    """Score seeds or masks against the data set's truth: IoU, precision, recall, FP/TP.

    Example: `python -m more evaluate checkpoints/shapes/masks/lam --data data/shapes_train`
    """
    import json

    from more.data.shards.format import make_folder
    from more.evaluation.evaluate import evaluate as job

    names = [name.strip() for name in classes.split(",")] if classes is not None else None
    if save is not None:
        make_folder(save.parent)
        if save.is_dir():
            raise UserError(f"{save}: is a folder", f"give a file, such as {save}/NAME.json")
    result = job(path, data, threshold=threshold, classes=names, sweep=sweep,
                 name="/".join(path.parts[-2:]))
    if save:
        result.save(save)
    if as_json:
        print(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        Console().print(result.table())


@app.command()
def export(
    masks: Annotated[Path, typer.Argument(help="mask shards made by `more refine`")],
    out: Annotated[Path, typer.Option(
        "--out", help="png, training: a folder; rle: NAME.json; voc-server: NAME.tar.gz")],
    format: Annotated[str, typer.Option(
        help="png: one index PNG per image; rle: COCO JSON with run lengths; voc-server: the "
             "archive for VOC's test server; training: a folder for supervised training")] = "png",
    palette: Annotated[bool | None, typer.Option(
        "--palette/--no-palette", help="png: with the VOC colour palette [default: palette]"
        )] = None,
    data: Annotated[Path | None, typer.Option(
        "--data", help="image set of the masks; training: required; rle: for COCO's category ids "
                       "and file endings")] = None,
    panoptic: Annotated[bool, typer.Option(
        "--panoptic", help="rle: panoptic style, segments as PNG in the folder NAME")] = False,
    list_file: Annotated[Path | None, typer.Option(
        "--list", help="voc-server: the masks must have exactly these ids, one a line")] = None,
    fill_ignore: Annotated[str | None, typer.Option(
        "--fill-ignore", help="voc-server: background, what pixels of value 255 become "
                              "[default: such masks are refused]")] = None,
    val_share: Annotated[float | None, typer.Option(
        "--val-share", help="training: part of the images for validation [default: 0.1]")] = None,
    seed: Annotated[int | None, typer.Option(
        min=0, max=2**32 - 1, help="training: another seed, other images for validation "
                                   "[default: 0]")] = None,
) -> None:
    """Write masks as files that other tools read.

    Example: `python -m more export checkpoints/shapes/masks/lam --format png --out masks_png`

    `python -m more export MASKS --format rle --data SET --out masks.json`

    `python -m more export MASKS --format voc-server --list test.txt --out results.tar.gz`

    `python -m more export MASKS --format training --data SET --out training`
    """
    from more.pseudo.export import FORMATS, export_masks

    _one_of("--format", format, tuple(FORMATS))
    tally = export_masks(masks, out, format, palette=palette, data=data, panoptic=panoptic or None,
                         list=list_file, fill_ignore=fill_ignore, val_share=val_share, seed=seed)
    tally.print()
    raise typer.Exit(tally.exit_code)


@app.command()
def report(
    run: Run,
    data: Annotated[Path | None, typer.Option(
        "--data", help="images and truth [default: as recorded with the seeds]")] = None,
    images: Annotated[int, typer.Option(min=1, help="pictures in the grid")] = 12,
) -> None:
    """One HTML file with scores, curves and pictures that opens from disk.

    Example: `python -m more report --run checkpoints/shapes`
    """
    from more.evaluation.report import build_report

    print(build_report(run, data, images=images))


@app.command()
def scores(
    run: Run,
    as_json: AsJson = False,
) -> None:
    """The table of everything scored so far under RUN/scores.

    Example: `python -m more scores --run checkpoints/shapes`
    """
    import json

    from more.evaluation.report import read_scores
    from more.evaluation.table import score_table

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
        print(json.dumps(rows, indent=1))
    else:
        from rich.console import Console

        Console().print(score_table(rows))


@app.command()
def config(
    file: Annotated[Path, typer.Argument(help="settings file")],
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option(help="with the meaning of every setting")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the resolved settings of a file.

    Example: `python -m more config configs/voc12_vit_b.py --set optim.lr=1e-4 --explain`
    """
    import json

    from more.config.load import flatten, load_config, to_dict

    settings = load_config(file, overrides or [])
    if as_json:
        print(json.dumps(to_dict(settings), indent=1))
        return
    for key, value, meaning in flatten(settings):
        print(f"{key} = {value!r}" + (f"    # {meaning}" if explain else ""))


@app.command()
def doctor(
    run: Annotated[Path, typer.Option(
        *RUN_NAMES, help="run folder, made or not")] = Path("checkpoints"),
    quick: Annotated[bool, typer.Option(
        "--quick", help="leave out the two processes that meet")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: packages, devices, DeepSpeed, disk, locks, clock, two processes.

    Example: `python -m more doctor --run checkpoints/shapes`
    """
    from more.doctor.report import doctor as job

    raise typer.Exit(job(run, quick, as_json))


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option} {value}: unknown", f"choose one of {', '.join(allowed)}")


def main() -> None:
    """Run the command line; what the user can mend prints a message and exits with 2."""
    try:
        app()
    except (UserError, OSError) as error:
        known = error if isinstance(error, UserError) else from_system(error)
        if known is None:
            raise
        console.print(f"error: {known}", highlight=False, markup=False, style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
