"""Casts of one update with DeepSpeed on the CPU, under bf16 autocast and with bf16 weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from more.config.load import load_config
from more.config.schema import Config
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World, setup, teardown
from more.train.engine import make_engine
from more.train.optimizer import poisoned
from more.train.stage_one import TagStage
from tests.research.step_count import IMAGES, NARROW, drawn_batch, last_step

SMALL = ("data.crop=112", f"train.global_batch={IMAGES}", "head_warmup.updates=0")
KINDS = ("bf16", "bf16_weights")


class Casts(TorchDispatchMode):
    """Counts operations that copy numbers into another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """One operation."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::_to_copy":
            self.count += args[0].dtype != result.dtype
        elif name == "aten::copy_":
            self.count += args[0].dtype != args[1].dtype
        return result


def casts_of(config: Config, world: World) -> int:
    """Casts of an update with all terms: forward, views, losses, backward, ZeRO and AdamW."""
    stage = TagStage(config, SimpleNamespace(), Path(tempfile.gettempdir()), world)
    engine = make_engine(config, split_batch(IMAGES, 1), world, stage, lambda _: None, None)
    stage.connect(engine, None)
    batch, step = drawn_batch(config), last_step(config)
    for casts in (Casts(), Casts()):  # the first fills what is kept between updates
        with casts:
            terms, anchor = next(stage.terms([stage.taken(batch)], step))
            engine.backward(poisoned(terms["total"], anchor))
            engine.step()
    engine.destroy()
    return casts.count


def casts_of_recipes(recipes: Sequence[Path], overrides: Sequence[str] = ()
                     ) -> dict[str, dict[str, int]]:
    """Casts of an update of each recipe, by precision and ZeRO stage."""
    world, found = setup(2, 1), {}
    for recipe in recipes:
        found[recipe.stem] = {
            f"{precision}, ZeRO {stage}": casts_of(load_config(recipe, [
                *NARROW, *SMALL, f"precision={precision}", f"deepspeed.zero_stage={stage}",
                *overrides]), world) for precision in KINDS for stage in (1, 2)}
    teardown()
    return found
