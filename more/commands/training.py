"""Training, and what comes before it: settings and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from more.commands.common import RUN_NAMES, AsJson, Overrides, app
from more.errors import UserError

if TYPE_CHECKING:
    from more.config.schema import Config
    from more.data.shards.quarantine import Damaged
    from more.data.shards.reader import ShardSet


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="settings, e.g. configs/voc12_vit_b.py")],
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

    Stage two, the segmenter for new pictures, from the refined masks:
    `python -m more train configs/shapes_micro.py --train data/shapes_train --masks
    checkpoints/shapes/masks/lam --init checkpoints/shapes --run checkpoints/shapes_two`

    Several processes: `torchrun --standalone --nproc_per_node=2 -m more train … --run-dir DIR`
    (torchrun mistakes `--run` for an option of its own), or
    `deepspeed --num_gpus 2 --module more train …`
    """
    from more.config.load import load_config
    from more.data.shards.format import make_folder

    if init is not None and masks is None:
        raise UserError("--init without --masks", "it says where stage two starts; stage one "
                        "starts from model.weights")
    settings = load_config(config, overrides or [], stage=2 if masks else 1)
    from more.engine.checks import check_classes
    from more.engine.distributed import launched_world, leave, setup, teardown
    from more.engine.folders import STAGE_TWO
    from more.engine.stage_two import settled
    from more.engine.stop import exit_code
    from more.engine.trainer import Trainer

    share = launched_world()
    images, left_out, val, labels = _open_sets(train_set, val_set, masks, settings, share)
    settings = settled(settings, labels, init) if labels else settings
    check_classes(settings, images, val)
    inside = init / STAGE_TWO if masks and init and init.is_dir() else None
    run = run or inside or Path("checkpoints") / settings.name
    if dry_run:
        from more.engine.dryrun import describe, show

        if share[0] == 0:
            show(describe(settings, images, val, ranks or share[1], resume=resume,
                          run=run, init=init), as_json)
        return
    make_folder(run)
    world = setup(settings.deepspeed.timeout_minutes, settings.train.threads)
    try:
        state = Trainer(settings, images, val, run, world, resume, left_out, labels, init).fit()
    except BaseException:
        teardown()
        raise
    leave(exit_code() if state == "stopped" else 0, world)


def _open_sets(train_set: Path, val_set: Path | None, masks: Path | None, settings: Config,
               share: tuple[int, int]
               ) -> tuple[ShardSet, list[Damaged], ShardSet | None, ShardSet | None]:
    """Images, what is damaged of them, validation set and masks, every file hashed."""
    from more.data.shards.quarantine import open_checked
    from more.data.shards.reader import ShardSet

    images, left_out = open_checked(train_set, quarantine=settings.data.quarantine, share=share,
                                    cache=settings.data.cache or None)
    val = ShardSet(val_set, kind="images", check="full", share=share) if val_set else None
    if masks is None:
        return images, left_out, val, None
    if masks.resolve() == train_set.resolve():
        return images, left_out, val, images  # true masks of the same set, less what is damaged
    return images, left_out, val, ShardSet(masks, check="full", share=share)


@app.command()
def config(
    file: Annotated[Path, typer.Argument(help="settings file")],
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option(help="with the meaning of every setting")] = False,
    stage: Annotated[int, typer.Option(min=1, max=2, help="2: as `more train --masks` has them"
                                       )] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the resolved settings of a file.

    Example: `python -m more config configs/voc12_vit_b.py --set optim.lr=1e-4 --explain`
    """
    import json

    from more.config.load import flatten, load_config, to_dict

    settings = load_config(file, overrides or [], stage)
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
