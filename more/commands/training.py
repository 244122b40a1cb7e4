"""Training, and what comes before it: settings and the machine."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from more.commands.common import RUN_NAMES, AsJson, Overrides, app
from more.errors import UserError

if TYPE_CHECKING:
    from more.config.schema import Config
    from more.data.shards.quarantine import Damaged
    from more.data.shards.reader import ShardSet
    from more.train.stop import StopRequest


@app.command()
def train(
    config: Annotated[Path, typer.Argument(
        help="settings: a file, or the name of a recipe, as voc12_vit_b")],
    train_set: Annotated[Path, typer.Option("--train", help="shard set with images and tags")],
    run: Annotated[Path | None, typer.Option(
        *RUN_NAMES, help="run folder [default: checkpoints/CONFIG_NAME; with --init a folder "
                         "two inside that run's]")] = None,
    val_set: Annotated[Path | None, typer.Option(
        "--val", help="shard set with masks, scored while training")] = None,
    masks: Annotated[Path | None, typer.Option(
        "--masks", help="stage two: train the decoder on these masks, from `more refine`; or, for "
                        "the fully supervised reference, on a set with true masks")] = None,
    init: Annotated[Path | None, typer.Option(
        "--init", help="with --masks: the run folder (or exported file) of stage one to start from"
        )] = None,
    overrides: Overrides = None,
    resume: Annotated[str, typer.Option(
        "--resume", help="auto: newest complete checkpoint of the run, else start; never: start "
                         "afresh, an earlier run moves to RUN/earlier-1; or a checkpoint folder, "
                         "what the run did after it moves there too"
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

    Stage two, the segmenter for new pictures, from the refined masks:
    `python -m more train configs/shapes_micro.py --train data/shapes_train --masks
    checkpoints/shapes/masks/lam --init checkpoints/shapes --run checkpoints/shapes_two`

    Several processes: `torchrun --standalone --nproc_per_node=2 -m more train … --run-dir DIR`
    (torchrun mistakes `--run` for an option of its own), or
    `deepspeed --num_gpus 2 --module more train …`
    """
    from more.train.stop import Stopped, StopRequest, end_early

    if init is not None and masks is None:
        raise UserError("--init without --masks", "it says where stage two starts; stage one "
                        "starts from model.weights")
    asked = StopRequest(at_once=True)
    place, iterations = run, 0
    try:
        with nullcontext() if dry_run else asked:
            from more.config.load import load_config

            settings = load_config(config, overrides or [], stage=2 if masks else 1)
            from more.run_folder import STAGE_TWO

            inside = init / STAGE_TWO if masks and init and init.is_dir() else None
            place = run or inside or Path("checkpoints") / settings.name
            iterations = settings.train.iterations
            paths = _Paths(train_set, val_set, masks, init, place, resume)
            if dry_run:
                _plan(settings, paths, ranks, as_json)
            else:
                _train(settings, paths, asked)
    except Stopped:
        end_early(place, iterations)


class _Paths(NamedTuple):
    """What a training reads and writes, see `train`."""

    train: Path
    val: Path | None
    masks: Path | None
    init: Path | None
    run: Path
    resume: str


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
    except BaseException:
        teardown()
        raise
    leave(exit_code() if state == "stopped" else 0, world)


def _open_sets(settings: Config, paths: _Paths, share: tuple[int, int]
               ) -> tuple[Config, ShardSet, list[Damaged], ShardSet | None, ShardSet | None]:
    """Settings as the sets decide them; images, what is damaged of them, validation set and masks,
    every file hashed."""
    from more.data.shards.quarantine import open_checked
    from more.data.shards.reader import ShardSet
    from more.train.checks import check_classes, check_compile
    from more.train.stage_two import settled

    check_compile(settings)
    images, left_out = open_checked(paths.train, quarantine=settings.data.quarantine, share=share,
                                    cache=settings.data.cache or None)
    val = ShardSet(paths.val, kind="images", check="full", share=share) if paths.val else None
    labels = None
    if paths.masks is not None:
        same = paths.masks.resolve() == paths.train.resolve()  # true masks, less what is damaged
        labels = images if same else ShardSet(paths.masks, check="full", share=share)
        settings = settled(settings, labels, paths.init)
    check_classes(settings, images, val)
    return settings, images, left_out, val, labels


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(
        help="settings: a file, or the name of a recipe")] = None,
    overrides: Overrides = None,
    list_recipes: Annotated[bool, typer.Option(
        "--list", help="name the recipes that are here, and what each is")] = False,
    explain: Annotated[bool, typer.Option(help="with the meaning of every setting")] = False,
    stage: Annotated[int, typer.Option(min=1, max=2, help="2: as `more train --masks` has them"
                                       )] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the resolved settings of a file or recipe, or list the recipes.

    Example: `python -m more config configs/voc12_vit_b.py --set optim.lr=1e-4 --explain`

    `python -m more config --list`
    """
    import json

    from more.config.load import flatten, load_config, to_dict

    if list_recipes == (file is not None):
        raise UserError("more config: " + ("a file and --list together" if list_recipes else
                                           "which settings?"),
                        "give either a file or recipe, or --list")
    if list_recipes:
        _list_recipes(as_json)
        return
    settings = load_config(file, overrides or [], stage)
    if as_json:
        print(json.dumps(to_dict(settings), indent=1))
        return
    for key, value, meaning in flatten(settings):
        print(f"{key} = {value!r}" + (f"    # {meaning}" if explain else ""))


def _list_recipes(as_json: bool) -> None:
    """Print names, files and purposes of all recipes."""
    import json

    from more.config.recipes import LAUNCH, recipes, summary

    found = [{"name": name, "file": str(file), "about": summary(file)}
             for name, file in recipes().items()]
    if as_json:
        print(json.dumps({"recipes": found, "launch": str(LAUNCH)}, indent=1))
        return
    for item in found:
        print(f"{item['name']}  ({item['file']})\n    {item['about']}")
    print(f"scripts to train with (train.sh, nodes.sh, quickstart.sh): {LAUNCH}")


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
