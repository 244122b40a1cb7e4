"""What DeepSpeed adds to a training step, and what a checkpoint costs.

The same updates are made twice, by DeepSpeed's engine and by a plain PyTorch loop; their losses are
compared before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from more.bench.bench_data import write_pictures
from more.bench.measure import Row, alternate, rows
from more.config.load import to_dict
from more.config.schema import Config
from more.data.colours import network_input
from more.data.loader import make_train_loader
from more.data.shards.reader import ShardSet
from more.method.labels import Batch
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.train import checkpoint, checkpoint_files
from more.train.cams import CamMaker
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World, setup, teardown
from more.train.engine import make_engine, make_optimizer, make_plan, make_transform
from more.train.optimizer import make_scheduler
from more.train.stage_one import TagStage, in_float32

BARE, ENGINE = "bare PyTorch", "DeepSpeed"
CHECKED = 3  # updates whose losses are compared
EVERY = 500  # updates between checkpoints, for the share of time
AGREE = {"fp32": 1e-6, "bf16": 1e-3}  # largest relative difference of the two losses


class Loop:
    """One way to train: the same batches in the same order, whoever makes the update.

    Args:
        config: settings.
        model: what is called with images: the network, or DeepSpeed's engine around it.
        patch: side of a patch in pixels.
        batches: one after another, then from the start again.
        update: backward and optimiser step for a loss.

    Attributes:
        spent: processor seconds an update, of every block; other processes do not disturb them.
    """

    def __init__(self, config: Config, model: Any, patch: int, batches: list[dict[str, Any]],
                 world: World, update: Callable[[torch.Tensor], None]):
        self.config, self.model, self.batches, self.device = config, model, batches, world.device
        self.objective, self.update, self.done = make_objective(config), update, 0
        self.cams = CamMaker(config, model, self.objective, patch)
        self.spent: list[float] = []

    def step(self) -> torch.Tensor:
        """One update; the loss before it."""
        data, config = self.batches[self.done % len(self.batches)], self.config
        images = network_input(data, self.device, config.data.mean, config.data.std)
        tags = data["tags"].to(self.device)
        output = in_float32(self.model(images))
        cams, aux_cams = self.cams(images, tags, output, self.done)
        patches = output.patch_tokens.shape[-2] * output.patch_tokens.shape[-1]
        keys = torch.rand(len(tags), 2, patches,
                          generator=torch.Generator().manual_seed(self.done)).to(self.device)
        terms = self.objective(output, Batch(
            images=images, tags=tags, cams=cams, aux_cams=aux_cams, box=data.get("box"), keys=keys,
            mean=config.data.mean, std=config.data.std), self.done)
        self.update(terms["total"])
        self.done += 1
        return terms["total"].detach()

    def seconds(self, steps: int) -> float:
        """Seconds per update over a block."""
        started, spent = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step()
        self.wait()
        self.spent.append((time.process_time() - spent) / steps)
        return (time.perf_counter() - started) / steps

    def wait(self) -> None:
        """Until a GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def bare_loop(config: Config, batches: list[dict[str, Any]], world: World) -> Loop:
    """Plain PyTorch with the same autocast, optimiser and schedule."""
    network = make_network(config).to(world.device).train()
    optimizer, optim = make_optimizer(config, network), config.optim
    scheduler = make_scheduler(optimizer, optim.warmup, config.train.iterations,
                               optim.warmup_ratio, optim.power)

    def forward(images: torch.Tensor, mode: str = "train", half: bool = False) -> Any:
        """The network's output in the precision of the settings."""
        with torch.autocast(world.device.type, torch.bfloat16,
                            enabled=config.precision == "bf16"):
            return network(images, mode=mode, half=half)

    def update(loss: torch.Tensor) -> None:
        """Backward pass and update, as PyTorch does them."""
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return Loop(config, forward, network.encoder.patch_size, batches, world, update)


def engine_loop(config: Config, batches: list[dict[str, Any]], world: World,
                images: ShardSet) -> Loop:
    """The engine that training uses."""
    engine = make_engine(config, split_batch(config.train.global_batch, 1), world,
                         TagStage(config, images, Path("."), world), lambda _: None, None)

    def update(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.step()

    return Loop(config, engine, engine.module.encoder.patch_size, batches, world, update)


def compare(bare: Loop, engine: Loop, steps: int) -> float:
    """Largest relative difference of the losses over some updates.

    Raises:
        RuntimeError: they are not the same training; then their times say nothing.
    """
    pairs = [(float(bare.step()), float(engine.step())) for _ in range(steps)]
    worst = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
    if not worst <= AGREE[bare.config.precision]:
        raise RuntimeError(f"the losses of both loops differ by {worst:.2g}: {pairs}")
    return worst


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


def bench_engine(config: Config, scratch: Path, *, steps: int = 20, rounds: int = 5
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
                 "difference of losses": short(worst), "processor time against": short(
                     median(engine.spent[1:]) / median(bare.spent[1:]))}
        for name, background in (("", False), (", background", True)):
            found = [save_seconds(engine, scratch / "checkpoints", world, background,
                                  seconds[ENGINE]) for _ in range(rounds)]
            cost = max(0.0, median(cost for cost, _ in found))
            share = cost / (cost + EVERY * seconds[ENGINE])
            about |= {"MB per checkpoint": short(found[0][1] / 1e6),
                      f"s per checkpoint{name}": short(cost),
                      f"% of time, one every {EVERY} steps{name}": short(100 * share)}
        return rows(seconds, {ENGINE: BARE}), about
    finally:
        teardown()


def _batches(config: Config, images: ShardSet) -> Iterator[dict[str, Any]]:
    plan = make_plan(config, images)
    yield from make_train_loader(images, make_transform(config.data), plan,
                                 stop_step=plan.per_epoch // config.train.global_batch)


def short(value: float) -> float:
    """Three digits of a figure."""
    return float(f"{value:.3g}")
