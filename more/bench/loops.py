"""A training step twice: under DeepSpeed's engine, and as a plain PyTorch loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from more.config.schema import Config
from more.data.colours import network_input
from more.data.shards.reader import ShardSet
from more.method.batch import Batch
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.train.build import make_engine, make_optimizer
from more.train.cams import CamMaker
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World
from more.train.optimizer import make_scheduler
from more.train.stage_one import TagStage, in_float32

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
        with torch.autocast(world.device.type, torch.bfloat16,
                            enabled=config.precision == "bf16"):
            return network(images, mode=mode, half=half)

    def update(loss: torch.Tensor) -> None:
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
