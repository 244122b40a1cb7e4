"""Whether settings, data and checkpoint belong together, before any work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from more.config.load import says, to_dict
from more.config.schema import Config
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.run_folder import info
from more.train.deepspeed_settings import BatchSplit

LEARNS_FROM = {1: "tags", 2: "masks"}
_SAME_SET = "give the set that it began with, or train into another --run folder"


def fitted_classes(config: Config, train_set: ShardSet, overrides: Sequence[str],
                   init: Path | None = None) -> Config:
    """The settings with the training set's number of classes, unless the user chose another one.

    Args:
        config: settings as `load_config` made them from `overrides`.
        train_set: shard set with images and tags.
        overrides: `"section.key=value"` strings of the command line; a number of classes that is
            said there stays, and `check_classes` judges it.
        init: what stage two starts from; the model is then that of stage one and stays, too.

    Returns:
        The settings; the same object where the number fits or must stay.

    Raises:
        UserError: stage one was trained on another number of classes.
    """
    number, own = config.model.num_classes, train_set.num_classes
    if number == own:
        return config
    if init is not None:
        raise UserError(f"{train_set.path} has {own} classes, {init} was trained with {number}",
                        "give the set that stage one was trained on, or the --init of this set")
    if says(overrides, "model.num_classes"):
        return config
    return replace(config, model=replace(config.model, num_classes=own))


def check_classes(config: Config, train_set: ShardSet, val_set: ShardSet | None) -> None:
    """Settings and shard sets must speak of the same classes.

    Args:
        config: settings.
        train_set: images and tags.
        val_set: images and masks, or None.

    Raises:
        UserError: another number of classes, or a validation set with other names.
    """
    if train_set.num_classes != config.model.num_classes:
        raise UserError(
            f"{train_set.path} has {train_set.num_classes} classes, the configuration "
            f"{config.model.num_classes}",
            f"--set model.num_classes={train_set.num_classes}, or convert the right data set")
    if config.train.global_batch > len(train_set):
        raise UserError(f"{train_set.path} has {len(train_set)} images, fewer than "
                        f"train.global_batch = {config.train.global_batch}",
                        f"--set train.global_batch={len(train_set)} or less")
    if val_set is not None and val_set.class_names != train_set.class_names:
        raise UserError(f"{val_set.path}: its classes differ from those of {train_set.path}",
                        "convert both splits with the same class list")
    if val_set is not None and not val_set.has("mask"):
        raise UserError(f"{val_set.path}: the validation set has no masks",
                        "convert a split with masks, or leave --val out")


def check_compile(config: Config) -> None:
    """`train.compile` must name a backend of this PyTorch's torch.compile, or nothing.

    Args:
        config: settings.

    Raises:
        UserError: it does not.
    """
    wanted = config.train.compile
    if not wanted:
        return
    from torch._dynamo import list_backends  # takes seconds

    if wanted not in list_backends(exclude_tags=()):
        known = ", ".join(list_backends())
        raise UserError(f"train.compile = {wanted!r} is no backend of torch.compile",
                        f"choose one of {known}, or '' for none")


def check_same_model(config: Config, source: Path) -> None:
    """A checkpoint continues only under the model, classes and crop it was made with.

    Args:
        config: settings.
        source: folder of the checkpoint.

    Raises:
        UserError: lists every setting that differs.
    """
    old = info(source)["config"]
    new = to_dict(config)
    # The start alone, and what changes memory but no number.
    free = ("weights", "recompute_cheap", "gradient_checkpointing")
    old_stage = old.get("stage", 1)
    if old_stage != config.stage:
        raise UserError(f"{source}: belongs to stage {old_stage} (training on "
                        f"{LEARNS_FROM[old_stage]}), this is stage {config.stage}",
                        "give stage two a --run folder of its own, and stage one's as --init")
    pairs = [("data", "crop"), *(("model", key) for key in new["model"] if key not in free)]
    changed = [f"{section}.{key}: {old[section].get(key)!r} → {new[section][key]!r}"
               for section, key in pairs if old[section].get(key) != new[section][key]]
    before, now = old.get("train", {}).get("scale_to", 0), config.train.scale_to
    if before != now:  # its numbers of updates count other images
        changed.append(f"train.scale_to: {before} → {now}")
    if changed:
        other_set = all(text.startswith("model.num_classes:") for text in changed)
        raise UserError(f"{source}: the configuration has changed since ({'; '.join(changed)})",
                        _SAME_SET if other_set else
                        "restore these settings, or train into another --run folder")


def check_continues(config: Config, train_set: ShardSet, source: Path) -> None:
    """A run goes on with the classes that it began with, and not to fewer updates than it has.

    Args:
        config: settings.
        train_set: images and tags.
        source: folder of the checkpoint.

    Raises:
        UserError: other class names, or more updates are done than `train.iterations`.
    """
    record = info(source)
    about = source.parent.parent / "run.json"  # of checkpoints from before they named their classes
    old = record.get("classes")
    if old is None and about.is_file():
        old = json.loads(about.read_text(encoding="utf-8"))["classes"]
    pairs = list(enumerate(zip(old or [], train_set.class_names, strict=False), start=1))
    other = [f"class {number} was {before!r}, is {now!r}" for number, (before, now) in pairs
             if before.replace("_", " ") != now.replace("_", " ")]
    if other:
        rest = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(f"{source}: was trained with other classes than those of {train_set.path} "
                        f"({'; '.join(other[:3])}{rest})", _SAME_SET)
    if record["step"] > config.train.iterations:
        raise UserError(f"{source}: {record['step']} updates are done, more than train.iterations "
                        f"= {config.train.iterations}",
                        f"leave it at {record['step']} or more; or go back with --resume to a "
                        "checkpoint of fewer updates, or train into another --run folder")


def check_best(config: Config, routes: Sequence[str]) -> None:
    """`checkpoint.best` must name what the stage scores, or nothing.

    Args:
        config: settings.
        routes: what evaluation scores, as "cam" and "lam".

    Raises:
        UserError: it does not.
    """
    if config.checkpoint.best not in ("", *routes):
        raise UserError(f"checkpoint.best = {config.checkpoint.best!r} is not scored in this stage",
                        f"choose {' or '.join(routes)}, or '' (of stage two: "
                        "stage_two.checkpoint.best)")


def out_of_memory(error: Exception, split: BatchSplit) -> UserError:
    """What to do when the device has too little memory; the global batch stays.

    Args:
        error: what the device's allocator raised.
        split: how the global batch is spread.

    Returns:
        The error to raise, with a cure.
    """
    cure = "set model.gradient_checkpointing=True, precision=bf16 or deepspeed.zero_stage=2"
    if split.micro > 1:
        half = next(size for size in range(split.micro // 2, 0, -1)
                    if split.micro * split.accumulation % size == 0)
        cure = (f"set train.micro_batch={half} ({split.micro} now): the same global batch in "
                f"{split.micro * split.accumulation // half} passes; or {cure}")
    return UserError(f"the device is out of memory ({str(error).splitlines()[0]})", cure)
