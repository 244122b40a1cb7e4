"""`more train … --dry-run`: what a training would do and need; nothing is written or started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from more import run_folder
from more.config.scale import scaled_settings
from more.config.schema import Config
from more.data.class_counts import class_counts
from more.data.loader import Reading, chunk_sizes
from more.data.shards.reader import ShardSet
from more.device import local_device, usable_cores
from more.errors import UserError
from more.plan.activations import step_activations
from more.plan.dry_run_tables import readable_bytes
from more.plan.memory import (
    checkpoint_bytes,
    layout_of,
    parameter_sizes,
    stage_memory,
    stages_of,
)
from more.train.checks import check_classes
from more.train.deepspeed_settings import BatchSplit, deepspeed_dict, split_batch
from more.train.distributed import settled_here
from more.train.engine import make_plan


def describe(config: Config, train_set: ShardSet, val_set: ShardSet | None, world: int, *,
             run: Path | None = None, resume: str = "auto", init: Path | None = None
             ) -> dict[str, Any]:
    """The facts of a run as JSON values; reads nothing but the shard sets and the run folder.

    Args:
        config: settings.
        train_set: images and tags.
        val_set: images and masks, or None.
        world: ranks; they need not exist.
        run: run folder, for what would be resumed.
        resume: `auto`, `never` or a checkpoint folder.
        init: what stage two starts from, in place of `model.weights`.

    Returns:
        Facts by name, which `more.plan.dry_run_tables.show` prints.

    Raises:
        UserError: whatever training would refuse about settings, data, batch and checkpoint.
    """
    config = settled_here(config, local_device(), _local_ranks(world))
    check_classes(config, train_set, val_set)
    split = split_batch(config.train.global_batch, world, config.train.micro_batch)
    deepspeed_dict(config, split)  # refuses a bad deepspeed.json
    if init is None:
        _check_weights(config)
    sizes, frozen, buffers = parameter_sizes(config)
    train = config.train
    return {
        "name": config.name, "variant": config.variant, "precision": config.precision,
        "device": _device(), "classes": train_set.num_classes, "parameters": sum(sizes) + frozen,
        "trained": sum(sizes), "stage": config.stage,
        "weights": config.model.weights, "start": _start(run, resume, init),
        "batch": {"global": split.global_batch, "ranks": world, "micro": split.micro,
                  "accumulation": split.accumulation},
        "images_per_class": class_counts(train_set.class_names, train_set.tags),
        **_passes(config, train_set, split.global_batch),
        "loader": _loader(config, split),
        "scaled": scaled_settings(config),
        "checkpoints": _checkpoints(config, checkpoint_bytes(
            sizes, frozen, buffers, train.ema > 0)),
        "evaluation": {"steps": _due(train.iterations, config.eval.every) if val_set else [],
                       "images": min(config.eval.images or len(val_set), len(val_set))
                       if val_set else 0},
        "checkpointing": config.model.gradient_checkpointing,
        "zero_stage": config.deepspeed.zero_stage, "offload": config.deepspeed.offload,
        "memory": _memory(config, split, world, sizes, frozen),
        # What is predicted is an update on tags; one on masks takes less.
        "activations": _activations(config, split.micro) if config.stage == 1 else {},
    }


def _passes(config: Config, train_set: ShardSet, batch: int) -> dict[str, Any]:
    """How often the images are seen, and in which order."""
    plan, train = make_plan(config, train_set), config.train
    return {
        "images": len(train_set), "iterations": train.iterations,
        "steps_per_epoch": plan.per_epoch / batch,
        "epochs": train.iterations * batch / plan.per_epoch,
        "images_seen": train.iterations * batch,
        "order": {"kind": "shards" if plan.shard_rows else "global",
                  "shards": len(train_set.shard_rows), "window": config.data.window,
                  "last_batch": config.data.last_batch, "seed": train.seed},
    }


def _activations(config: Config, images: int) -> dict[str, dict[str, int]]:
    """Bytes of a pass on a rank, without and with `model.gradient_checkpointing`."""
    found = {}
    for checkpointing in (False, True):
        model = replace(config.model, gradient_checkpointing=checkpointing)
        part = step_activations(replace(config, model=model), images)
        found["checkpointing" if checkpointing else "plain"] = {**asdict(part), "peak": part.peak}
    return found


def _memory(config: Config, split: BatchSplit, world: int, sizes: Sequence[int], frozen: int
            ) -> list[dict[str, int]]:
    """Bytes of a rank under each ZeRO stage that the precision allows."""
    rows = [stage_memory(stage, sizes, layout_of(config, world, split.accumulation, frozen))
            for stage in stages_of(config.precision)]
    return [{**asdict(row), "states": row.states, "device": row.device} for row in rows]


def _loader(config: Config, split: BatchSplit) -> dict[str, Any]:
    """Processes and shared memory of one rank's loader (see `make_train_loader`)."""
    data = config.data
    image = data.crop ** 2 * 3
    facts = {"workers": data.workers, "crop": data.crop, "pipeline": data.pipeline,
             "augment": data.augment, "cache": data.cache, "shared_bytes": 0, "ahead": 0}
    if data.workers:
        size, ahead = chunk_sizes(Reading(data.workers, data.prefetch_mb), split.micro,
                              split.accumulation, image)
        facts["shared_bytes"] = (data.workers * ahead + 1) * size * split.micro * image
        facts["ahead"] = data.workers * ahead * size
    return facts


def _checkpoints(config: Config, size: int) -> dict[str, Any]:
    """Steps and bytes; one more than is kept lies on the disk while the next is written."""
    kept = config.checkpoint.keep + bool(config.checkpoint.best)
    return {"steps": _due(config.train.iterations, config.checkpoint.every), "bytes": size,
            "kept": kept, "disk_bytes": size * (kept + 1),
            "background": config.checkpoint.background}


def _due(iterations: int, every: int) -> list[int]:
    """Updates after which something is due: every so many, and at the end."""
    steps = list(range(every, iterations + 1, every)) if every else []
    return steps if steps and steps[-1] == iterations else [*steps, iterations]


def _start(run: Path | None, resume: str, init: Path | None) -> str:
    """What training would start from: a checkpoint, stage one, or the beginning."""
    path = None
    if run is not None and resume != "never":
        path = run_folder.choose(run, resume)
    if path is not None:
        return str(path)
    return "the beginning" if init is None else f"the weights of {init}"


def _check_weights(config: Config) -> None:
    """A weights file must be there; it is not read.

    Raises:
        UserError: it is missing.
    """
    weights = config.model.weights
    if weights not in ("timm", "none") and not Path(weights).is_file():
        raise UserError(f"weights file {weights} does not exist",
                        "correct model.weights; 'timm' downloads, 'none' starts from scratch")


def _local_ranks(world: int) -> int:
    """Ranks of one machine: as launched, else one a GPU, and on a CPU all of them."""
    gpus = torch.cuda.device_count() if local_device().type == "cuda" else world
    return int(os.environ.get("LOCAL_WORLD_SIZE", min(world, gpus)))


def _device() -> str:
    """Name and memory of this machine's device."""
    device = local_device()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)}, {readable_bytes(memory)}"
    return f"cpu, {usable_cores()} cores"
