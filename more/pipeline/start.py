"""What `more run` does before the stages and after them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from more.config.load import load_config, to_dict
from more.config.schema import Config
from more.data.shards.format import sha256_bytes, to_json
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.run_scores import read_scores
from more.pipeline.recipe_choice import choose_map, choose_recipe
from more.pipeline.run_stages import STOPPED, note, read_record, run_stages
from more.pipeline.stages import Plan, Stage, convert_stage, make_stages
from more.progress import say
from more.run_folder import OWN_DATA

TAG_FILES = ("tags.csv", "tags.json")


@dataclass(frozen=True)
class Asked:
    """The options of `more run`, see there."""

    data: Path
    run: Path
    config: str | None = None
    val: Path | None = None
    overrides: Sequence[str] = ()
    stage_two: Sequence[str] = ()


def run_all(asked: Asked) -> tuple[int, dict[str, Any]]:
    """Convert where needed, choose the recipe, run all stages.

    Args:
        asked: the options.

    Returns:
        The exit code (see `run_stages`) and facts as JSON values: `run`, `recipe`, `data`, `map`,
        `masks`, `network`, `report`, `stages` (command lines by name) and `scores`.

    Raises:
        UserError: no such data, settings that cannot work, or a stage that failed.
    """
    if asked.config is not None:  # before the conversion, which may take long
        _settings(asked, asked.config)
    val = None if asked.val is None else ShardSet(asked.val, kind="images")
    ranks, code, data = _ranks(), 0, asked.data
    if not (data / "manifest.json").is_file():
        stage = _conversion(asked)
        code, data = run_stages(asked.run, [stage], 1), stage.result
    images = ShardSet(data, kind="images")
    recipe = asked.config or _recipe(asked.run, len(images))
    first, second = _settings(asked, recipe, len(images))
    plan = Plan(asked.run, data, asked.val, recipe, tuple(asked.overrides),
                tuple(asked.stage_two), choose_map(first.inference.spread))
    stages = make_stages(plan, images.has("mask"), first)
    inputs = [images.manifest.digest, val and val.manifest.digest, to_dict(first), to_dict(second)]
    code = max(code, run_stages(asked.run, stages, ranks, sha256_bytes(to_json(inputs))))
    return code, _facts(plan, stages, ranks)


def _conversion(asked: Asked) -> Stage:
    """The stage that makes a shard set of a folder of pictures.

    Raises:
        UserError: no such folder, or no tags in it.
    """
    if not asked.data.is_dir():
        raise UserError(f"{asked.data}: no such folder",
                        "give a shard set, or a folder of pictures with tags.csv")
    tags = [asked.data / name for name in TAG_FILES if (asked.data / name).is_file()]
    if not tags:
        raise UserError(f"{asked.data}: neither a shard set nor a folder with {TAG_FILES[0]}",
                        f"write {asked.data / TAG_FILES[0]} with the header id,tags and one line "
                        "an image, or convert it: data_tools/README.md has other forms")
    return convert_stage(asked.data, tags[0], asked.run / OWN_DATA)


def _recipe(run: Path, pictures: int) -> str:
    """The recipe that an earlier call chose, else the one for so many pictures, which is kept."""
    record = read_record(run)
    if "recipe" in record:
        return str(record["recipe"])
    name, why = choose_recipe(pictures, _gpus())
    say(f"recipe: {name}, {why} ({pictures:,} here; --config takes another)")
    note(run, recipe=name)
    return name


def _settings(asked: Asked, recipe: str, pictures: int | None = None) -> tuple[Config, Config]:
    """Settings of both stages; checked before stage one has cost hours.

    Raises:
        UserError: settings that cannot work, or a batch larger than the set.
    """
    first = load_config(recipe, asked.overrides)
    second = load_config(recipe, [*asked.overrides, *asked.stage_two], stage=2)
    for settings, option in ((first, "--set"), (second, "--stage-two-set")):
        batch = settings.train.global_batch
        if pictures is not None and batch > pictures:
            raise UserError(f"{asked.data} has {pictures} images, fewer than train.global_batch = "
                            f"{batch} of stage {settings.stage}",
                            f"{option} train.global_batch={pictures} or less")
    return first, second


def _ranks() -> int:
    """Processes of a stage that is spread: RANKS, else one for each GPU.

    Raises:
        UserError: RANKS is no number of processes.
    """
    text = os.environ.get("RANKS", "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise UserError(f"RANKS={text}: not a number of processes", "give 1 or more, or unset it")
    return int(text) if text else max(1, _gpus())


def _gpus() -> int:
    """GPUs that a training would use."""
    from more.device import local_device

    if local_device().type != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


def _facts(plan: Plan, stages: Sequence[Stage], ranks: int) -> dict[str, Any]:
    """Where everything is, see `run_all`."""
    return {"run": str(plan.run), "recipe": plan.config, "data": str(plan.data), "map": plan.map,
            "masks": str(plan.masks), "network": str(plan.two),
            "report": str(plan.run / "report.html"),
            "stages": {stage.name: stage.line(ranks) for stage in stages},
            "scores": read_scores(plan.run, [])}


__all__ = ["STOPPED", "Asked", "run_all"]
