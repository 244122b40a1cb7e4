"""What DeepSpeed adds to a training step, what a checkpoint costs, and where a step's time goes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from more.bench.data import write_pictures
from more.bench.loops import AGREE, Loop, bare_loop, compare, engine_loop
from more.bench.measure import Row, alternate, rows, show
from more.bench.profile import draw_parts
from more.bench.step import bench_step
from more.bench.tables import show_tables
from more.config.load import load_config, to_dict
from more.config.recipes import PACKAGED
from more.config.schema import Config, StartConfig
from more.data.loader import make_train_loader
from more.data.shards.reader import ShardSet
from more.device import keep_freed_memory, local_device
from more.errors import UserError
from more.train import checkpoint, checkpoint_files
from more.train.build import make_plan, make_transform
from more.train.distributed import World, settled_here, setup, teardown

MICRO = PACKAGED / "shapes_micro.py"
BARE, ENGINE = "bare PyTorch", "DeepSpeed"
CHECKED = 3  # updates whose losses are compared
EVERY = 500  # updates between checkpoints, for the share of time


def bench_settings(file: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Settings to measure: every term counts from the start, no weights are read.

    Args:
        file: None takes the micro ViT at 64 px, 8×8 patches.
        overrides: `key=value` on top.

    Raises:
        UserError: a precision whose bare loop would be another training.
    """
    config = load_config(file or MICRO, [*([] if file else ["data.crop=64"]), *overrides])
    config = settled_here(config, local_device(), 1)
    if config.precision not in AGREE:
        raise UserError(f"precision = {config.precision}: DeepSpeed keeps other weights then, so "
                        "there is nothing to compare", "measure fp32 or bf16")
    return replace(
        config, model=replace(config.model, weights="none"),
        head_warmup=replace(config.head_warmup, updates=0), cam=replace(config.cam, ema=False),
        optim=replace(config.optim, clip=0.0, frozen_steps=0),
        train=replace(config.train, micro_batch=0, compile="", ema=0.0),
        loss=replace(config.loss, start=StartConfig(**dict.fromkeys(vars(StartConfig()), -1))))


def save_seconds(loop: Loop, folder: Path, world: World, background: bool, plain: float
                 ) -> tuple[float, int]:
    """What one checkpoint costs training, and its bytes.

    Args:
        loop: with DeepSpeed's engine.
        folder: where checkpoints go.
        world: this process.
        background: written by a thread while updates go on; what they take longer counts.
        plain: seconds of an update without a checkpoint.
    """
    writer, steps = checkpoint_files.Writer(folder, 1, world, background), 0
    loop.wait()
    started = time.perf_counter()
    snapshot = checkpoint.take(loop.model, loop.done, world,
                               record={"config": to_dict(loop.config)})
    writer.save(snapshot)
    while background and writer.busy:
        loop.step()
        steps += 1
    loop.wait()
    writer.finish()
    return time.perf_counter() - started - steps * plain, snapshot.bytes


def bench_train(config: Config, scratch: Path, *, steps: int = 20, rounds: int = 5
                ) -> tuple[list[Row], dict[str, Any]]:
    """Measure one process on this device.

    Args:
        config: from `bench_settings`.
        scratch: empty folder for pictures and checkpoints.
        steps: updates in a block.
        rounds: rounds of both loops that count, and checkpoints of each kind.

    Returns:
        The table's lines and facts about the run.
    """
    world = setup(1, config.train.threads)
    try:
        images = ShardSet(write_pictures(
            scratch / "set", 4 * config.train.global_batch, config.data.crop, config.data.crop,
            classes=config.model.num_classes), kind="images", check="full")
        batches = list(_batches(config, images))
        bare = bare_loop(config, batches, world)
        engine = engine_loop(config, batches, world, images)
        worst = compare(bare, engine, CHECKED)
        seconds = alternate({BARE: partial(bare.seconds, steps),
                             ENGINE: partial(engine.seconds, steps)}, rounds)
        about = {"device": str(world.device), "precision": config.precision,
                 "ZeRO": config.deepspeed.zero_stage, "batch": config.train.global_batch,
                 "crop": config.data.crop, "steps": steps, "rounds": rounds,
                 "difference of losses": _short(worst), "processor time against": _short(
                     median(engine.spent[1:]) / median(bare.spent[1:]))}
        for name, background in (("", False), (", background", True)):
            found = [save_seconds(engine, scratch / "checkpoints", world, background,
                                  seconds[ENGINE]) for _ in range(rounds)]
            cost = max(0.0, median(cost for cost, _ in found))
            share = cost / (cost + EVERY * seconds[ENGINE])
            about |= {"MB per checkpoint": _short(found[0][1] / 1e6),
                      f"s per checkpoint{name}": _short(cost),
                      f"% of time, one every {EVERY} steps{name}": _short(100 * share)}
        return rows(seconds, {ENGINE: BARE}), about
    finally:
        teardown()


@dataclass(frozen=True)
class StepChoice:
    """What to measure of the step itself: see `more.bench.step.bench_step`.

    Attributes:
        only: leave DeepSpeed and checkpoints out.
        oracle: "none", "research" or "positions".
        backend: of torch.compile, or "".
        picture: file for the parts as a picture, or None.
    """

    only: bool = False
    oracle: str = "none"
    backend: str = ""
    picture: Path | None = None


def run(file: Path | None = None, steps: int = 20, rounds: int = 5, as_json: bool = False,
        overrides: Sequence[str] = (), choice: StepChoice = StepChoice()) -> None:  # noqa: B008
    """Measure and print; pictures and checkpoints go to a temporary folder."""
    config, lines, about = bench_settings(file, overrides), [], {}
    if not choice.only:
        with tempfile.TemporaryDirectory(prefix="more-bench-") as scratch:
            lines, about = bench_train(config, Path(scratch), steps=steps, rounds=rounds)
    torch.set_num_threads(config.train.threads or len(os.sched_getaffinity(0)))
    device = local_device()
    if device.type == "cpu":
        keep_freed_memory()
    oracle = "" if choice.oracle == "none" else choice.oracle
    found, facts, parts = bench_step(config, rounds=rounds, oracle=oracle, backend=choice.backend,
                                     device=device)
    about |= {"device": str(device), "threads": torch.get_num_threads(),
              "precision": config.precision, "backbone": config.model.backbone,
              "crop": config.data.crop, "batch": config.train.global_batch, "rounds": rounds,
              **{key: _short(value) for key, value in facts.items()}}
    if choice.picture:
        draw_parts(parts, choice.picture, f"a training step, {config.model.backbone}, "
                   f"{config.data.crop} px, batch {config.train.global_batch}, {device}")
    shares = [{"step": name, **part} for name, part in parts.items()]
    if as_json:
        show_tables("train", {"rows": list(map(asdict, lines)), "step": list(map(asdict, found)),
                              "seconds by part": shares}, about, [], as_json)
        return
    if lines:
        show("train", lines, {}, "step", False)
    show("a whole step", found, {}, "step", False)
    show_tables("train", {"seconds by part": shares}, about, [], False)


def _batches(config: Config, images: ShardSet) -> Iterator[dict[str, Any]]:
    plan = make_plan(config, images)
    yield from make_train_loader(images, make_transform(config.data), plan,
                                 stop_step=plan.per_epoch // config.train.global_batch)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
