"""Stage one: training on image tags, with all terms of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from more.config.schema import Config
from more.data.colours import network_input
from more.data.loader import Batches
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore
from more.method.cam import Present, PresentMaps, multi_scale, scaled_size, single_scale
from more.method.labels import Batch, Labels
from more.method.network import MoReNetwork, NetworkOutput
from more.method.objective import Objective, make_objective, mean_counts
from more.tensors import upload
from more.train.average import WeightAverage
from more.train.build import make_batches
from more.train.deepspeed_settings import BatchSplit
from more.train.distributed import World
from more.train.frozen_tokens import kept_tokens
from more.train.meter import CAMS, FORWARD, LOSSES
from more.train.stop import StopRequest
from more.train.warm_up import warm_heads

RELU = (True, True)  # of both CAMs


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
        """Told the phase that begins; the trainer puts its clock here."""

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
            terms = warm_heads(network, self.images, self.config, not self.world.main, self.world,
                               self.stop.check)
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

    def taken(self, data: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch with its images on the device: the loader's own memory holds the pixels of
        the latest one only."""
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
        """For each pass of an update the loss terms with their "total", and an output to anchor it
        to. Each is to be differentiated before the next is asked for.

        Terms are divided by counts of the whole update, which CAMs of all passes give: the labels
        of all are made first, with a forward without gradient, but for the last pass: its training
        forward serves both. So an update of n passes takes n - 1 forwards more, and no view twice.
        Where no term that counts takes part, it takes none more.

        Args:
            passes: micro-batches from `taken`, all of this rank's update.
            step: number of the update.
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
        """Uniform numbers `[b, 2, h·w]` for URE's choice: a function of seed, step and place in the
        batch, so that an image's patches do not depend on its rank and pass, and no rank draws
        those of others. None where URE is off."""
        if not (self.config.loss.weights.ure and self.objective.needs_cams(step)):
            return None
        key = np.array([self.config.train.seed % 2**64, step], dtype=np.uint64)
        drawn = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, slot, 0]))
                 .random((2, shape[-2] * shape[-1]), dtype=np.float32) for slot in slots.tolist()]
        return upload(torch.from_numpy(np.stack(drawn)), self.world.device)


def in_float32(output: NetworkOutput) -> NetworkOutput:
    """The same outputs in fp32: losses and similarities are computed outside autocast."""
    return NetworkOutput(*(value.float() for value in output))


# The CAMs that an update learns from: which views are run, with which weights, how precisely.


class CamMaker:
    """Multi-scale CAM and auxiliary CAM of a batch, without gradient (method §4.4).

    - The view of scale 1 is the training forward's; only its mirror image is run again.
    - While no term needs the main CAM (the decoder's terms have not begun), views stop at the
      auxiliary block, and the main CAM is the training forward's alone.
    - `cam.every` = k: the views are run in updates 0, k, 2k, …; in the others both CAMs are the
      training forward's alone.
    - On a GPU (`cam.packed`) the views go through the blocks in one pass.
    - `cam.ema`: all views, scale 1 as well, are run with the average of the weights.

    Args:
        config: settings.
        model: what is called with images and a mode: DeepSpeed's engine, or the network.
        objective: says what an update needs.
        patch: side of a patch in pixels.
        average: of the weights, for `cam.ema`.
    """

    def __init__(self, config: Config, model: Callable[..., Any], objective: Objective, patch: int,
                 average: WeightAverage | None = None):
        self.cam, self.model, self.objective = config.cam, model, objective
        if config.cam.ema and average is None:
            raise ValueError("cam.ema needs an average of the weights")
        self.average = average if config.cam.ema else None
        self.multiple = patch if config.cam.whole_patches else 1
        self.frozen = config.model.frozen_blocks

    @torch.no_grad()
    def __call__(self, images: Tensor, tags: Tensor | Present, output: NetworkOutput, step: int,
                 mirrored: Tensor | None = None) -> tuple[PresentMaps | None, PresentMaps | None]:
        """CAM and auxiliary CAM, 0..1 at full size, for an update; None where none is needed.

        Args:
            images: `[B, 3, H, W]` as the network takes them.
            tags: `[B, C]`, or what they say; only the maps of present classes are made.
            output: of the training forward on these images.
            step: number of the update.
            mirrored: what the frozen blocks make of the mirrored images, where that is known.
        """
        if not self.objective.needs_cams(step):
            return None, None
        size, first = tuple(images.shape[-2:]), (output.cam, output.aux_cam)
        if step % self.cam.every:
            return single_scale(first, size, RELU, tags=tags)
        if needs_main(self.objective, step):
            return self._views("cam", images, tags, first, RELU, mirrored)
        main = single_scale(first[:1], size, RELU[:1], tags=tags)
        return main + self._views("aux_cam", images, tags, first[1:], RELU[1:], mirrored)

    def _views(self, mode: str, images: Tensor, tags: Tensor | Present, first: tuple[Tensor, ...],
               relu: tuple[bool, ...], mirrored: Tensor | None) -> tuple[PresentMaps, ...]:
        network = partial(self.model, mode=mode, half=half_views(self.cam.precision, images.device)
                          and images.dtype == torch.float32)  # 16-bit weights need none

        def known(views: Tensor) -> Tensor:
            """The views, or their kept tokens where the frozen blocks have been run."""
            # Of scale 1 only the mirrored images are asked for (`multi_scale` with `first`).
            same = mirrored is not None and views.shape == images.shape and self.average is None
            return mirrored if same else views

        def run(views: Any) -> Any:
            """CAMs of the views of a scale, or with `packed` of those of all scales."""
            if packed:
                return network([known(view) for view in views])
            views = known(views)
            return network(views, frozen=self.frozen) if views is mirrored else network(views)
        packed = packs_views(self.cam.packed, images.device)
        # Inside an autocast, even one that is off, casts of weights are kept until it is left: they
        # are made once for all views, not once for each.
        keep_casts = torch.autocast(images.device.type, enabled=False)
        with self.average.in_place() if self.average else nullcontext(), keep_casts:
            return multi_scale(run, images, self.cam.scales, relu, tags=tags,
                               first=None if self.average else first, multiple=self.multiple,
                               together=packed)


def needs_main(objective: Objective, step: int) -> bool:
    """Whether an update uses the main CAM: for the decoder's labels, and late for CRE and URE."""
    decoder = objective.active("seg", step) or objective.active("energy", step)
    return decoder or objective.compute_inactive or step > objective.cam.late_after


def half_views(precision: str, device: torch.device) -> bool:
    """Whether views that only give CAMs run in bf16 (`cam.precision`) on a device."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def packs_views(packed: str, device: torch.device) -> bool:
    """Whether the views that only give CAMs run in one pass (`cam.packed`) on a device."""
    return packed == "yes" or (packed == "auto" and device.type == "cuda")


def view_sizes(config: Config, patch: int) -> list[tuple[tuple[int, int], int]]:
    """The forwards that only give CAMs, as ((height, width), views an image) of each."""
    cam, crop = config.cam, config.data.crop
    multiple = patch if cam.whole_patches else 1
    return [((crop, crop), 2 if cam.ema else 1)] + [
        (scaled_size((crop, crop), scale, multiple), 2) for scale in cam.scales if scale != 1]
