"""Operations, casts, waits and copies of an update: `python -m tests.research step-count`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from more.bench.drawn_step import drawn_example
from more.config.load import load_config
from more.config.schema import Config
from more.method.make_network import make_network
from more.train.distributed import World
from more.train.engine import make_optimizer
from more.train.optimizer import poisoned
from more.train.stage_one import TagStage
from tests.claimed_gpu import GPU, claimed_gpu, put_on
from tests.research.launches import Launches, fused_attention

NARROW = ("model.backbone=custom", "model.weights=none", "model.token_init=perturbed",
          "model.vit.embed_dim=48", "model.vit.depth=12", "model.vit.num_heads=3",
          "model.vit.patch_size=16", "data.workers=0", "data.order=global")
IMAGES = 8


def settings(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe at 448 px and 8 images, with a narrow network of ViT-B's depth."""
    return load_config(recipe, ["data.crop=448", f"train.global_batch={IMAGES}", *NARROW,
                                *overrides])


def last_step(config: Config) -> int:
    """An update in which every term takes part."""
    starts = (*vars(config.loss.start).values(), config.cam.late_after)
    return max(starts) + 1


def drawn_batch(config: Config) -> dict[str, Any]:
    """What the loader gives, drawn."""
    example, crop, images = drawn_example(config, IMAGES, 16, torch.device("cpu")), \
        config.data.crop, IMAGES
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, crop, crop, 3), dtype=torch.uint8, generator=generator)
    box = torch.tensor([0, crop, 0, crop]).repeat(images, 1)
    return {"images": pixels, "jitter": torch.rand(images, 13, generator=generator), "box": box,
            "tags": example.tags, "indices": torch.arange(images), "slots": torch.arange(images)}


class Engine:
    """The part of DeepSpeed's engine that a stage calls."""

    def __init__(self, network: torch.nn.Module):
        self.module = network

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def fp16_enabled(self) -> bool:
        return False


def updates_of(config: Config) -> Callable[[], dict[str, Tensor]]:
    """A function that makes one update on the claimed GPU; call it inside `claimed_gpu`."""
    stage = TagStage(config, SimpleNamespace(), Path(tempfile.gettempdir()),
                     World(0, 1, 0, 1, GPU))
    engine = Engine(put_on(make_network(config)).train())
    optimizer = make_optimizer(config, engine.module)
    stage.connect(engine, None)
    batch, step = drawn_batch(config), last_step(config)

    def update() -> dict[str, Tensor]:
        terms, anchor = next(stage.terms([stage.taken(batch)], step))
        poisoned(terms["total"], anchor).backward()
        optimizer.step()
        optimizer.zero_grad()
        return terms
    return update


def counted(config: Config) -> tuple[Launches, dict[str, float]]:
    """An update's counts, and its terms; one before it fills what is kept between updates."""
    with claimed_gpu():
        update = updates_of(config)
        update()
        count = Launches()
        with fused_attention(count), count:
            terms = update()
        return count, {name: float(value.detach()) for name, value in terms.items()}
