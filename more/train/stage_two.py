"""Stage two: the decoder, with the last blocks or without, learns from masks.

The masks come from stage one by way of `more refine` (tags stay the only supervision), or are the
true ones (the fully supervised reference). Blocks that stay frozen are run once over some random
views of every image, and what they make is kept (`more.data.dataset`).

B images of a pass, C classes, h×w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from more.config.schema import Config
from more.data.colours import network_input
from more.data.dataset import Masks, TokenDataset
from more.data.loader import Batches
from more.data.mask_labels import match_masks
from more.data.shards.format import sha256_file
from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few
from more.inference.trained import (
    exported_config,
    find_checkpoint,
    load_run,
    run_config,
    weights_file,
)
from more.method.labels import IGNORE
from more.method.losses.classification import image_tags_loss, kind_counts, mask_loss
from more.method.network import MoReNetwork, train_only
from more.tensors import upload
from more.train.average import WeightAverage
from more.train.deepspeed_settings import BatchSplit
from more.train.distributed import World
from more.train.engine import make_batches
from more.train.frozen_tokens import kept_tokens
from more.train.meter import FORWARD, LOSSES
from more.train.stage_one import TagStage
from more.train.stop import StopRequest


class MaskStage:
    """What an update on masks is made of (see `TagStage`).

    Args:
        config: settings of stage two (`load_config(..., stage=2)`).
        images: the training set.
        masks: a set of masks, or of images with true masks.
        run: run folder, where tokens are kept unless `tokens.folder` names another.
        world: this rank among its peers.
        init: run folder or exported file of stage one; None starts from `model.weights`.

    Attributes:
        images: those that have a mask. lacking: ids of those that have none.
        stop: what ends the work before the first update.

    Raises:
        UserError: masks that do not belong to the images.
    """

    routes = ("decoder",)
    mark = staticmethod(TagStage.mark)

    def __init__(self, config: Config, images: ShardSet, masks: ShardSet, run: Path, world: World,
                 init: Path | None = None):
        self.config, self.run, self.world, self.init = config, run, world, init
        self.stop = StopRequest()
        self.labels, self.images, self.lacking = match_masks(masks, images)
        self.pretrained = init is None
        self.record = {"masks": masks.manifest.digest,
                       "init": world.agree(init_digest(init) if world.main else None)}
        self.sources = {"masks": str(Path(masks.path).resolve()),
                        "supervision": config.segment.supervision,
                        "init": None if init is None else str(Path(init).resolve())}
        self.tokens: TokenDataset | None = None

    def begin(self, network: MoReNetwork, say: Callable[[str], None]) -> None:
        """Take over the weights of `--init`; the decoder's unless it shall be fresh.

        Args:
            network: on its device; changed in place.
            say: told where the run starts from.
        """
        if self.init is None:
            return
        _, trained, path = load_run(self.init)
        weights = trained.state_dict()
        if self.config.segment.decoder == "fresh":
            weights = {name: value for name, value in weights.items()
                       if not name.startswith("decoder.")}
        network.load_state_dict(weights, strict=False)
        say(f"starts from {path}, with a {self.config.segment.decoder} decoder")

    def prepare(self, network: MoReNetwork, say: Callable[[str], None]) -> None:
        """Freeze what is not trained, and run it over the views.

        Args:
            network: with the weights that the run begins or goes on with.
            say: told what is left out, computed or reused.
        """
        segment = self.config.segment
        self.frozen = train_only(network, segment.blocks)
        if self.lacking:
            say(f"{len(self.lacking)} images have no mask and are left out: "
                f"{first_few(self.lacking)}")
        self.views = 0
        if not self.frozen:
            return
        store, self.views = kept_tokens(network, self.images, self.config, self.frozen, self.run,
                                        self.world, say, stop=self.stop)
        if store is not None:
            self.tokens = TokenDataset(store, self.views, self.labels, self.images.tags,
                                       self.config.data.crop, segment.stride)

    def connect(self, engine: Any, average: WeightAverage | None) -> None:
        """Take the engine that updates run through.

        Args:
            engine: DeepSpeed's.
            average: of its weights; it has no part in the terms.
        """
        self.engine = engine

    def batches(self, split: BatchSplit, start: int) -> Batches:
        """This rank's micro-batches from update number `start` on.

        Args:
            split: how the global batch is spread.
            start: updates that are done.

        Returns:
            The batches, see `more.data.loader`.
        """
        return make_batches(self.config, self.images, self.world, split, start,
                            masks=Masks(self.labels, self.config.segment.stride),
                            views=self.views, tokens=self.tokens)

    def taken(self, data: dict[str, Any]) -> dict[str, Any]:
        """What an update needs of a micro-batch, on the device.

        Args:
            data: a batch of the loader.

        Returns:
            Tensors by name: `inputs` (images or tokens), `labels`, `weights` of pixels or None,
            `tags`.
        """
        segment, device = self.config.segment, self.world.device
        if self.tokens is None:
            inputs = network_input(data, device, self.config.data.mean, self.config.data.std)
        else:
            inputs = upload(data["tokens"], device)
        stored = upload(data["labels"], device)
        labels, confidence = stored[..., 0], stored[..., 1].float() / 255
        return {"inputs": inputs.to(next(self.engine.module.parameters()).dtype),
                "labels": labels.masked_fill(confidence < segment.ignore_below, IGNORE),
                "weights": confidence if segment.confidence == "weight" else None,
                "tags": upload(data["tags"], device)}

    def terms(self, passes: Sequence[dict[str, Any]], step: int
              ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """The loss terms of each pass of an update, with their "total", and an output to anchor it
        to.

        Pixels are counted over all passes and ranks.

        Args:
            passes: micro-batches from `taken`, all of this rank's update.
            step: number of the update; every term counts from the first one on.

        Yields:
            Terms by name, and logits `[B, C+1, h, w]`.
        """
        del step  # every term counts from the first update on
        segment, balanced = self.config.segment, self.config.segment.loss == "balanced"
        reduce = self.world.mean if self.world.size > 1 else None
        if len(passes) > 1:
            own = torch.stack([torch.stack(kind_counts(
                data["labels"], torch.float32, data["weights"], balanced)) for data in passes])
            reduce = self.world.mean(own.mean(dim=0))
        for data in passes:
            self.mark(FORWARD)
            logits = self.engine(data["inputs"], mode="segment", frozen=self.frozen).float()
            self.mark(LOSSES)
            terms = {"seg": mask_loss(logits, data["labels"], data["weights"], balanced, reduce,
                                      1 / (self.world.size * len(passes)))}
            total = terms["seg"]
            if segment.tags:
                terms["tags"] = image_tags_loss(logits, data["tags"])
                total = total + segment.tags * terms["tags"]
            yield {**terms, "total": total}, logits


def settled(config: Config, masks: ShardSet, init: Path | None) -> Config:
    """The settings of stage two, with what follows from its masks and from where it starts.

    Of the run that it starts from comes all of `model`, so that a run with other settings than the
    file's needs them once only; but for `decoder_width` where the decoder is fresh, and what only
    saves memory.

    Args:
        config: `load_config(..., stage=2)`.
        masks: what it is trained on; a set of kind "images" holds true masks.
        init: run folder or exported file of stage one, or None.

    Returns:
        New settings.

    Raises:
        UserError: `init` is no run.
    """
    supervision = "true masks" if masks.kind == "images" else "tags"
    config = replace(config, segment=replace(config.segment, supervision=supervision))
    if init is None:
        return config
    old = exported_config(init) if init.is_file() else run_config(init)
    own = ["recompute_cheap", "gradient_checkpointing"]
    own += ["decoder_width"] if config.segment.decoder == "fresh" else []
    model = replace(old.model, image_size=old.model.image_size or old.data.crop,
                    **{key: getattr(config.model, key) for key in own})
    return replace(config, model=model, variant=old.variant,
                   data=replace(config.data, mean=old.data.mean, std=old.data.std))


def init_digest(init: Path | None) -> str | None:
    """sha256 of the weights that a run of stage two starts from.

    Args:
        init: run folder or exported file, or None.

    Returns:
        64 hex digits, or None.
    """
    if init is None:
        return None
    return sha256_file(weights_file(init if init.is_file() else find_checkpoint(init)))


def check_start(source: Path, record: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """A run on masks goes on with the masks that it began with, from where it began.

    Args:
        source: the checkpoint.
        record: of this `MaskStage`.
        recorded: what the checkpoint says.

    Raises:
        UserError: other masks, or another start.
    """
    names = {"masks": "masks", "init": "weights of --init"}
    for key, value in record.items():
        if recorded.get(key) != value:
            raise UserError(f"{source}: was trained with other {names[key]}",
                            f"give the {names[key]} that it began with, or train into another "
                            "--run folder")
