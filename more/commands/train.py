"""The command that trains."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from more.commands.options import HOW, PLACES, RUN_NAMES, SHOWN, START, Overrides, app
from more.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from more.config.schema import Config
    from more.data.shards.quarantine import Damaged
    from more.data.shards.reader import ShardSet
    from more.train.stop import StopRequest

LONG_READ = 2e8
"""Bytes of shards from which their hashing is announced: it takes about a second per GB."""

TrainConfig = Annotated[Path, typer.Argument(
    help="settings: a file, or the name of a recipe, as voc12_vit_b")]
Run = Annotated[Path | None, typer.Option(
    *RUN_NAMES, help="run folder [default: checkpoints/CONFIG_NAME; with --init a folder "
                     "two inside that run's]", rich_help_panel=PLACES)]
TrainSet = Annotated[Path, typer.Option(
    "--train", help="shard set with images and tags", rich_help_panel=PLACES)]
ValSet = Annotated[Path | None, typer.Option(
    "--val", help="shard set with masks, scored while training", rich_help_panel=PLACES)]
Masks = Annotated[Path | None, typer.Option(
    "--masks", help="stage two: train the decoder on these masks, from `more refine`; or, for "
                    "the fully supervised reference, on a set with true masks",
    rich_help_panel=PLACES)]
Init = Annotated[Path | None, typer.Option(
    "--init", help="with --masks: the run folder (or exported file) of stage one to start from",
    rich_help_panel=PLACES)]
Resume = Annotated[str, typer.Option(
    "--resume", help="auto: newest complete checkpoint of the run, else start; never: start "
                     "afresh, an earlier run, with its stage two, moves to RUN/earlier-1; or a "
                     "checkpoint folder, what the run did after it moves there too",
    rich_help_panel=HOW)]
DryRun = Annotated[bool, typer.Option(
    "--dry-run", help="only say what would happen: batches, steps, memory per ZeRO stage",
    rich_help_panel=SHOWN)]
Ranks = Annotated[int, typer.Option(
    min=0, help="with --dry-run: plan for so many processes; 0 = those started",
    rich_help_panel=SHOWN)]
TrainAsJson = Annotated[bool, typer.Option(
    "--json", help="with --dry-run: print the facts as JSON", rich_help_panel=SHOWN)]


@app.command(rich_help_panel=START)
def train(
    config: TrainConfig,
    train_set: TrainSet,
    run: Run = None,
    val_set: ValSet = None,
    masks: Masks = None,
    init: Init = None,
    overrides: Overrides = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    ranks: Ranks = 0,
    as_json: TrainAsJson = False,
) -> None:
    """Train MoRe. The same command resumes an interrupted run.

    Example: `python -m more train shapes_micro --train quickstart/data/train
    --val quickstart/data/val --run quickstart/run`

    Stage two, the segmenter for new pictures, from the refined masks:
    `python -m more train shapes_micro --train quickstart/data/train --val quickstart/data/val
    --masks quickstart/run/masks/lam --init quickstart/run`

    Several processes: `torchrun --standalone --nproc_per_node=2 -m more train … --run-dir DIR`
    (torchrun mistakes `--run` for an option of its own), or
    `deepspeed --num_gpus 2 --module more train …`
    """
    from more.train.stop import Stopped, StopRequest, end_early

    if init is not None and masks is None:
        raise UserError("--init without --masks", "it says where stage two starts; stage one "
                        "starts from model.weights")
    asked, place, iterations = StopRequest(at_once=True), run, 0
    try:
        with nullcontext() if dry_run else asked:
            from more.config.load import load_config

            settings = load_config(config, overrides or [], stage=2 if masks else 1)
            place = run or _usual_folder(settings, masks, init)
            iterations = settings.train.iterations
            paths = _Paths(config, train_set, val_set, masks, init, place, resume,
                           tuple(overrides or ()))
            if dry_run:
                _plan(settings, paths, ranks, as_json)
            else:
                _train(settings, paths, asked)
    except Stopped:
        from more.commands.after_training import resume_line
        from more.device import launched_world

        end_early(place, iterations, resume_line(sys.argv[1:], launched_world()[1]))


def _usual_folder(settings: Config, masks: Path | None, init: Path | None) -> Path:
    """The run folder where none was named: of stage two inside that of stage one."""
    from more.run_folder import STAGE_TWO

    if masks and init and init.is_dir():
        return init / STAGE_TWO
    return Path("checkpoints") / settings.name


class _Paths(NamedTuple):
    """What a training reads and writes, see `train`."""

    config: Path
    train: Path
    val: Path | None
    masks: Path | None
    init: Path | None
    run: Path
    resume: str
    overrides: tuple[str, ...]


def _plan(settings: Config, paths: _Paths, ranks: int, as_json: bool) -> None:
    """Say what a training would do."""
    from more.device import launched_world
    from more.plan.dry_run import describe
    from more.plan.dry_run_tables import show

    number, size = launched_world()
    settings, images, _, val, _ = _open_sets(settings, paths, (number, size))
    if number == 0:
        show(describe(settings, images, val, ranks or size, resume=paths.resume, run=paths.run,
                      init=paths.init), as_json)


def _train(settings: Config, paths: _Paths, asked: StopRequest) -> None:
    """Train, as one rank of those launched, and end this process."""
    from more.data.shards.format import make_folder
    from more.device import launched_world
    from more.train.distributed import leave, setup, teardown
    from more.train.run_lock import sole_training
    from more.train.stop import exit_code
    from more.train.trainer import Trainer

    share = launched_world()
    asked.at_once = asked.at_once and share[1] == 1
    settings, images, left_out, val, labels = _open_sets(settings, paths, share)
    make_folder(paths.run)
    world = setup(settings.deepspeed.timeout_minutes, settings.train.threads)
    try:
        with sole_training(paths.run, world):
            state = Trainer(settings, images, val, paths.run, world, paths.resume, left_out,
                            labels, paths.init, asked).fit()
        if world.main:
            _say_what_next(state, paths, settings.train.iterations, world.size)
    except BaseException:
        teardown()
        raise
    leave(exit_code() if state == "stopped" else 0, world)


def _say_what_next(state: str, paths: _Paths, updates: int, ranks: int) -> None:
    """The last lines of a training."""
    from more.commands.after_training import Trained, finished_lines, resume_line
    from more.progress import say

    if state == "finished":
        trained = Trained(paths.config, paths.train, paths.run, updates, paths.val, paths.masks)
        say("\n".join(finished_lines(trained)))
    else:
        say(resume_line(sys.argv[1:], ranks))


def _open_sets(settings: Config, paths: _Paths, share: tuple[int, int]
               ) -> tuple[Config, ShardSet, list[Damaged], ShardSet | None, ShardSet | None]:
    """Settings as the sets decide them; images, what is damaged of them, validation set and masks,
    every file hashed."""
    from more.data.shards.quarantine import open_checked
    from more.data.shards.reader import ShardSet
    from more.progress import say
    from more.train.checks import check_classes, check_compile, fitted_classes
    from more.train.stage_two import settled
    from more.train.wandb_log import check_wandb

    check_compile(settings)
    check_wandb(settings.telemetry.wandb)
    if share[0] == 0:
        _say_hashing([paths.train, paths.val, paths.masks])
    images, left_out = open_checked(paths.train, quarantine=settings.data.quarantine, share=share,
                                    cache=settings.data.cache or None)
    val = ShardSet(paths.val, kind="images", check="full", share=share) if paths.val else None
    labels = None
    if paths.masks is not None:
        same = paths.masks.resolve() == paths.train.resolve()  # true masks, less what is damaged
        labels = images if same else ShardSet(paths.masks, check="full", share=share)
        settings = settled(settings, labels, paths.init)
    fitted = fitted_classes(settings, images, paths.overrides, paths.init)
    if fitted is not settings and share[0] == 0:
        say(f"model.num_classes = {images.num_classes}, as {paths.train} has (the recipe has "
            f"{settings.model.num_classes})")
    check_classes(fitted, images, val)
    return fitted, images, left_out, val, labels


def _say_hashing(folders: Sequence[Path | None]) -> None:
    """That the sets' files are read and compared with their hashes, where that takes long."""
    from more.data.shards.manifest import read_manifest
    from more.progress import say

    shards = [shard for folder in dict.fromkeys(filter(None, folders))
              for shard in read_manifest(folder).shards]
    size = sum(shard.bytes for shard in shards)
    if size > LONG_READ:
        say(f"hashing {len(shards)} shards, {size / 1e9:.1f} GB …")
