"""Stage one: training on image tags, with all terms of the method.

B images of a pass, C classes, H×W pixels, h×w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from more.config.schema import Config
from more.data.colours import network_input
from more.data.loader import Batches
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore
from more.method.cam import Present
from more.method.labels import Batch, Labels
from more.method.network import MoReNetwork, NetworkOutput
from more.method.objective import make_objective, mean_counts
from more.tensors import upload
from more.train.average import WeightAverage
from more.train.cams import CamMaker
from more.train.deepspeed_settings import BatchSplit
from more.train.distributed import World
from more.train.engine import make_batches
from more.train.frozen_tokens import kept_tokens
from more.train.meter import CAMS, FORWARD, LOSSES
from more.train.stop import StopRequest
from more.train.warm_up import warm_heads


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

    @staticmethod
    def mark(phase: str) -> None:
        """Told the phase that begins; the trainer puts its clock here.

        Args:
            phase: one of `more.train.meter.PHASES`.
        """

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
        """The start of a run that no checkpoint continues: the head warm-up.

        Args:
            network: on its device; changed in place.
            say: told how the warm-up ends.
        """
        if self.config.head_warmup.updates:
            terms = warm_heads(network, self.images, self.config, not self.world.main, self.world,
                               self.stop.check)
            say("head warm-up ends at " + ", ".join(
                f"{name} {value:.4g}" for name, value in terms.items()))

    def prepare(self, network: MoReNetwork, say: Callable[[str], None]) -> None:
        """Run the frozen blocks (`model.frozen_blocks`) over views of the images, once.

        Args:
            network: with the weights that the run begins or goes on with.
            say: told what is computed or reused.
        """
        frozen = self.config.model.frozen_blocks
        if frozen:
            self.store, self.views = kept_tokens(network, self.images, self.config, frozen,
                                                 self.run, self.world, say, mirrored=True,
                                                 stop=self.stop)

    def connect(self, engine: Any, average: WeightAverage | None) -> None:
        """Take the engine that updates run through, and the average of its weights.

        Args:
            engine: DeepSpeed's.
            average: of its weights, if the run keeps one.
        """
        self.engine = engine
        self.cams = CamMaker(self.config, engine, self.objective,
                             engine.module.encoder.patch_size, average)

    def batches(self, split: BatchSplit, start: int) -> Batches:
        """This rank's micro-batches from update number `start` on.

        Args:
            split: how the global batch is spread.
            start: updates that are done.

        Returns:
            The batches, see `more.data.loader`.
        """
        return make_batches(self.config, self.images, self.world, split, start,
                            views=self.views, store=self.store)

    def taken(self, data: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch with its images on the device.

        They are copied at once, since the loader's own memory holds the pixels of the latest batch
        only.

        Args:
            data: a batch of the loader.

        Returns:
            The batch with `inputs` (images in the weights' precision) and `present` (classes of the
            tags).
        """
        device = self.world.device
        data = {**data, "tags": upload(data["tags"], device),
                "present": Present.of(data["tags"]).to(device),
                "images": network_input(data, device, self.config.data.mean, self.config.data.std)}
        data["inputs"] = self._as_weights(data["images"])
        if self.store is not None:
            tokens = data["tokens"].to(device, non_blocking=True)
            data["tokens"] = [self._as_weights(part.float()) for part in tokens.unbind(1)]
        return data

    def terms(self, passes: Sequence[dict[str, Any]], step: int
              ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """The loss terms of each pass of an update, with their "total", and an output to anchor it
        to.

        Each is to be differentiated before the next is asked for.

        Terms are divided by counts of the whole update, which CAMs of all passes give: the labels
        of all are made first, with a forward without gradient, but for the last pass: its training
        forward serves both. So an update of n passes takes n - 1 forwards more, and no view twice.
        Where no term that counts takes part, it takes none more.

        Args:
            passes: micro-batches from `taken`, all of this rank's update.
            step: number of the update.

        Yields:
            Terms by name, and logits of the network.
        """
        share = 1 / (len(passes) * self.world.size)
        if len(passes) == 1 or not self.objective.needs_counts(step):
            for data in passes:
                output = self._forward(data)
                yield self.objective(output, self._batch(data, output, step, share), step
                                     ), output.logits
            return
        labels, (*first, last) = [], passes
        for data in first:
            with torch.no_grad():
                output = self._forward(data)
                labels.append(self._labels(data, output, step, share))
        output = self._forward(last)
        labels.append(self._labels(last, output, step, share))
        numbers = mean_counts(
            [self.objective.counts(found, data["present"])
             for data, (_, found) in zip(passes, labels, strict=True)], self._count_reduce)
        for data, (batch, found) in zip([last, *first], [labels[-1], *labels], strict=False):
            if data is not last:
                output = self._forward(data)
            yield self.objective(output, batch, step, labels=found, numbers=numbers), output.logits

    def _forward(self, data: dict[str, Any]) -> NetworkOutput:
        """The training forward of a pass."""
        self.mark(FORWARD)
        if self.store is None:
            return in_float32(self.engine(data["inputs"]))
        return in_float32(self.engine(data["tokens"][0], frozen=self.config.model.frozen_blocks))

    def _labels(self, data: dict[str, Any], output: NetworkOutput, step: int, share: float
                ) -> tuple[Batch, Labels | None]:
        """A pass without its CAMs, which take much memory, and the labels that they gave."""
        batch = self._batch(data, output, step, share)
        return replace(batch, cams=None, aux_cams=None), self.objective.labels(output, batch, step)

    def _batch(self, data: dict[str, Any], output: NetworkOutput, step: int, share: float) -> Batch:
        """What the objective needs of a pass: its CAMs among others."""
        images, present = data["images"], data["present"]
        mirrored = None if self.store is None else data["tokens"][1]
        self.mark(CAMS)
        cams, aux_cams = self.cams(data["inputs"], present, output, step, mirrored)
        self.mark(LOSSES)
        box = None if data.get("box") is None else upload(data["box"], self.world.device)
        return Batch(images=images, tags=data["tags"], cams=cams, aux_cams=aux_cams, box=box,
                     keys=self._keys(data["slots"], output.patch_tokens.shape, step),
                     count_reduce=self._count_reduce, share=share,
                     mean=self.config.data.mean, std=self.config.data.std, present=present)

    @property
    def _count_reduce(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return self.world.mean if self.world.size > 1 else None

    def _as_weights(self, images: torch.Tensor) -> torch.Tensor:
        """Images in the weights' precision (16 bits under fp16 and bf16_weights)."""
        return images.to(next(self.engine.module.parameters()).dtype)

    def _keys(self, slots: torch.Tensor, shape: torch.Size, step: int) -> torch.Tensor | None:
        """Uniform numbers `[B, 2, h·w]` for URE's choice; None where URE is off.

        They are a function of seed, step and place in the batch, so that an image's patches do not
        depend on its rank and pass, and no rank draws those of others.
        """
        if not (self.config.loss.weights.ure and self.objective.needs_cams(step)):
            return None
        key = np.array([self.config.train.seed % 2**64, step], dtype=np.uint64)
        drawn = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, slot, 0]))
                 .random((2, shape[-2] * shape[-1]), dtype=np.float32) for slot in slots.tolist()]
        return upload(torch.from_numpy(np.stack(drawn)), self.world.device)


def in_float32(output: NetworkOutput) -> NetworkOutput:
    """The same outputs in fp32: losses and similarities are computed outside autocast.

    Args:
        output: of the network.

    Returns:
        The same, tensor by tensor.
    """
    return NetworkOutput(*(value.float() for value in output))
