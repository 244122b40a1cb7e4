"""Stage one: training on image tags, with all terms of the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from more.config.schema import Config
from more.data.colours import prepare
from more.data.loader import Batches
from more.data.shards.reader import ShardSet
from more.data.store import TokenStore
from more.engine.average import WeightAverage
from more.engine.build import make_batches, make_objective
from more.engine.cams import CamMaker
from more.engine.distributed import World
from more.engine.encode import kept_tokens
from more.engine.settings import BatchSplit
from more.engine.stop import StopRequest
from more.engine.warmup import warm_heads
from more.losses.objective import Batch
from more.model.network import MoReNetwork, NetworkOutput


class TagStage:
    """What an update on tags is made of: batches, CAMs, terms.

    Args:
        config: settings.
        images: the training set.
        run: run folder, where tokens of frozen blocks are kept.
        world: this rank among its peers.

    Attributes:
        routes: what evaluation scores. record: JSON values for the checkpoints' marker;
            sources: for the run's `run.json`; stop: what ends the work before the first update.
    """

    pretrained = True
    """Whether the network starts from `model.weights`."""

    def __init__(self, config: Config, images: ShardSet, run: Path, world: World):
        self.config, self.images, self.run, self.world = config, images, run, world
        self.stop = StopRequest()
        self.store: TokenStore | None = None
        self.views = 0
        self.objective = make_objective(config)
        self.routes = ("cam", "lam", *(["decoder"] if config.decoder_trained else []))
        self.record: dict[str, Any] = {}
        self.sources: dict[str, Any] = {}

    def begin(self, network: MoReNetwork, say: Callable[[str], None]) -> None:
        """The start of a run that no checkpoint continues: the head warm-up."""
        if self.config.head_warmup.updates:
            terms = warm_heads(network, self.images, self.config, quiet=not self.world.main,
                               check=self.stop.check)
            say("head warm-up ends at " + ", ".join(
                f"{name} {value:.4g}" for name, value in terms.items()))

    def prepare(self, network: MoReNetwork, say: Callable[[str], None]) -> None:
        """Run the frozen blocks (`model.frozen_blocks`) over views of the images, once."""
        frozen = self.config.model.frozen_blocks
        if frozen:
            self.store, self.views = kept_tokens(network, self.images, self.config, frozen,
                                                 self.run, self.world, say, mirrored=True,
                                                 stop=self.stop)

    def connect(self, engine: Any, average: WeightAverage | None) -> None:
        """Take the engine that updates run through, and the average of its weights."""
        self.engine = engine
        self.cams = CamMaker(self.config, engine, self.objective,
                             engine.module.encoder.patch_size, average)

    def batches(self, split: BatchSplit, start: int) -> Batches:
        """This rank's micro-batches from update number `start` on."""
        return make_batches(self.config, self.images, self.world, split, start,
                            views=self.views, store=self.store)

    def terms(self, data: dict[str, Any], step: int
              ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The loss terms of a micro-batch with their "total", and an output to anchor it to."""
        images = prepare(data, self.world.device, self.config.data.mean, self.config.data.std)
        tags, mirrored = data["tags"].to(self.world.device), None
        if self.store is None:
            output = in_float32(self.engine(self._as_weights(images)))
        else:
            plain, mirrored = (self._as_weights(part.float()) for part in data["tokens"].to(
                self.world.device, non_blocking=True).unbind(1))
            output = in_float32(self.engine(plain, frozen=self.config.model.frozen_blocks))
        cams, aux_cams = self.cams(self._as_weights(images), tags, output, step, mirrored)
        batch = Batch(images=images, tags=tags, cams=cams, aux_cams=aux_cams,
                      box=data["box"].to(self.world.device, non_blocking=True),
                      keys=self._keys(data["slots"], output.patch_tokens.shape, step),
                      count_reduce=self.world.mean if self.world.size > 1 else None,
                      share=1 / self.world.size,
                      mean=self.config.data.mean, std=self.config.data.std)
        return self.objective(output, batch, step), output.logits

    def _as_weights(self, images: torch.Tensor) -> torch.Tensor:
        """Images in the weights' precision (half under fp16)."""
        return images.half() if self.engine.fp16_enabled() else images

    def _keys(self, slots: torch.Tensor, shape: torch.Size, step: int) -> torch.Tensor:
        """Uniform numbers for URE's choice: a function of seed, step and place in the batch."""
        train = self.config.train
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + step)
        keys = torch.rand(train.global_batch, 2, shape[-2] * shape[-1], generator=generator)
        return keys[slots].to(self.world.device)


def in_float32(output: NetworkOutput) -> NetworkOutput:
    """The same outputs in fp32: losses and similarities are computed outside autocast."""
    return NetworkOutput(*(value.float() for value in output))
