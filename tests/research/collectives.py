"""Collectives of an update: what the ranks of a large job would say to each other, counted on one.

The process group is PyTorch's fake one, in which nobody answers: it does what a group of so many
ranks would do, and every collective returns at once.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from more.config.load import load_config
from more.config.schema import Config
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World, import_deepspeed
from more.train.engine import make_engine
from more.train.optimizer import poisoned
from more.train.stage_one import TagStage
from tests.research.step_count import IMAGES, NARROW, drawn_batch, last_step

SMALL = ("data.crop=112", "head_warmup.updates=0", "precision=fp32")


class Collectives(TorchDispatchMode):
    """Counts what goes to the process group, by name, and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """One operation."""
        name = func._schema.name
        if name.startswith("c10d::"):
            self.found[name.removeprefix("c10d::")] += 1
            self.bytes += sum(_bytes(part) for part in args)
        return func(*args, **(kwargs or {}))


def _bytes(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.numel() * part.element_size()
    return sum(map(_bytes, part)) if isinstance(part, list | tuple) else 0


def collectives_of_recipes(recipes: Sequence[Path], overrides: Sequence[str] = (),
                           ranks: int = 8) -> dict[str, dict[str, Any]]:
    """Collectives of an update with all terms, by ZeRO stage and passes an update: those of the
    passes (labels and losses), and the engine's with what it reduces.

    One call a process: DeepSpeed keeps the groups that it has made.
    """
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    world, found = World(0, ranks, 0, ranks, torch.device("cpu")), {}
    for recipe in recipes:
        for stage in (0, 1, 2):
            for passes in (1, 2):
                config = load_config(recipe, [
                    *NARROW, *SMALL, f"train.global_batch={IMAGES * ranks * passes}",
                    f"train.micro_batch={IMAGES}", f"deepspeed.zero_stage={stage}", *overrides])
                found.setdefault(recipe.stem, {})[f"ZeRO {stage}, {passes} passes"] = {
                    who: {**count.found, "MB": count.bytes / 1e6}
                    for who, count in _count(config, world, passes).items()}
    dist.destroy_process_group()
    return found


def _count(config: Config, world: World, passes: int) -> dict[str, Collectives]:
    import_deepspeed()
    stage = TagStage(config, SimpleNamespace(), Path(tempfile.gettempdir()), world)
    split = split_batch(config.train.global_batch, world.size, config.train.micro_batch)
    engine = make_engine(config, split, world, stage, lambda _: None, None)
    stage.connect(engine, None)
    batch, step = drawn_batch(config), last_step(config)
    for _ in range(2):  # the first update makes what is kept
        found = {name: Collectives() for name in ("passes", "engine")}
        with found["passes"]:
            parts = stage.terms([stage.taken(batch) for _ in range(passes)], step)
        for _ in range(passes):
            with found["passes"]:
                terms, anchor = next(parts)
                loss = poisoned(terms["total"], anchor)
            with found["engine"]:
                engine.backward(loss)
                engine.step()
    engine.destroy()
    return found
