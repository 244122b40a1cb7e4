"""From settings to objects: optimiser, engine, batches and the order of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from more.config.schema import Config, DataConfig
from more.data.batch_order import GlobalBatchSampler
from more.data.loader import Batches, Reading, make_train_loader
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform
from more.errors import UserError
from more.method.make_network import make_network
from more.method.network import MoReNetwork, parameter_groups
from more.train.deepspeed_settings import BatchSplit, deepspeed_dict
from more.train.distributed import World, import_deepspeed
from more.train.optimizer import GuardedAdamW, make_scheduler
from more.train.random_state import seed


def make_optimizer(config: Config, network: MoReNetwork) -> torch.optim.AdamW:
    """AdamW over the five released groups of parameters.

    Class and regularising tokens form a group of their own where their rate differs or where the
    blocks start frozen. Every group carries `name` and `freezable` (true for the encoder's blocks
    and norms).

    Args:
        config: settings.
        network: its parameters are updated.

    Returns:
        The optimiser; without ZeRO it is a `GuardedAdamW`.
    """
    optim = config.optim
    split_tokens = optim.token_lr_scale != 1 or optim.frozen_steps > 0
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(network, head_lr_scale=optim.head_lr_scale):
        encoder = group["name"].startswith("encoder")
        base = {"weight_decay": optim.weight_decay, "lr": optim.lr * group["lr_scale"]}
        params = list(group["params"])
        if encoder and split_tokens:
            tokens = [p for p in params if any(p is t for t in network.encoder.token_parameters())]
            params = [p for p in params if not any(p is t for t in tokens)]
            if tokens:
                groups.append({"name": "tokens", "params": tokens, "freezable": False,
                               **base, "lr": optim.lr * optim.token_lr_scale})
        groups.append({"name": group["name"], "params": params, "freezable": encoder, **base})
    # ZeRO checks gradients itself, and takes no sub-class; offloaded, AdamW runs on the CPU.
    kind = GuardedAdamW if config.deepspeed.zero_stage == 0 else torch.optim.AdamW
    # On a CPU as well: there one pass over memory takes a sixth of AdamW's loop.
    fused = config.deepspeed.offload == "none"
    optimizer = kind(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps,
                     fused=fused or None)
    if kind is GuardedAdamW:
        optimizer.clip = optim.clip
    return optimizer


def make_engine(config: Config, split: BatchSplit, world: World, stage: Any,
                say: Callable[[str], None], weights: Mapping[str, torch.Tensor] | None) -> Any:
    """DeepSpeed's engine around the network, in training mode.

    Args:
        config: settings.
        split: how the global batch is spread.
        world: ranks.
        stage: of the training, `TagStage` or `MaskStage`: how a run begins, what is frozen.
        say: told what the stage does before the first update.
        weights: those of a checkpoint; None starts from `model.weights`, or as the stage does.

    Returns:
        The engine, with optimiser and schedule.
    """
    deepspeed = import_deepspeed()
    if config.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise UserError(f"precision=fp16 does not work on {world.device.type} here",
                        "set precision=bf16, or fp32")
    if config.precision == "bf16_weights" and not deepspeed.get_accelerator().is_bf16_supported():
        raise UserError(f"precision=bf16_weights does not work on {world.device.type} here",
                        "set precision=fp32")
    network = make_network(config, weights is None and stage.pretrained).to(world.device)
    if weights is not None:
        network.load_state_dict(weights)
    else:
        stage.begin(network, say)
        same_buffers(network, world)
    stage.prepare(network, say)
    if config.train.compile:
        network.encoder.compile_blocks(config.train.compile)
    optimizer, schedule = make_optimizer(config, network), config.optim
    scheduler = make_scheduler(optimizer, schedule.warmup, config.train.iterations,
                               schedule.warmup_ratio, schedule.power, schedule.frozen_steps)
    # The engine rounds them to 16 bits as well; a checkpoint shall hold them as they came.
    frozen = {name: value.detach().to("cpu", copy=True) for name, value
              in network.named_parameters() if not value.requires_grad
              } if config.precision in ("fp16", "bf16_weights") else {}
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, lr_scheduler=scheduler,
        config=deepspeed_dict(config, split))
    engine.frozen_weights = frozen
    engine.train()
    seed(config.train.seed, world.rank)  # whatever building the network has drawn
    return engine


@torch.no_grad()
def same_buffers(network: torch.nn.Module, world: World) -> None:
    """Rank 0's buffers on every rank: DeepSpeed sends parameters alone.

    The centre of competitive heads is a mean over features that each rank has made itself; on
    GPUs these need not be equal to the last bit.

    Args:
        network: changed in place on all ranks but the first.
        world: ranks; all of them call it.
    """
    if world.size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


def make_transform(data: DataConfig) -> TrainTransform:
    """The random view of a training image.

    Args:
        data: settings of the views.

    Returns:
        The transform.
    """
    return TrainTransform(data.crop, data.augment, data.pipeline, area=(data.min_area, 1.0),
                          jitter_probability=data.jitter)


MANY_SHARDS = 64
"""Above it `data.order=auto` reads shard by shard: the files no longer fit into memory."""


def make_batches(config: Config, images: ShardSet, world: World, split: BatchSplit, start: int,
                 **shown: Any) -> Batches:
    """A rank's micro-batches from update number `start` on.

    Args:
        config: settings.
        images: the training set.
        world: this rank among its peers.
        split: how the global batch is spread.
        start: updates that are done.
        **shown: `masks`, `views`, `store` or `tokens`, see `make_train_loader`.

    Returns:
        The batches, see `more.data.loader`.
    """
    data = config.data
    return make_train_loader(
        images, make_transform(data), make_plan(config, images), rank=world.rank, world=world.size,
        micro_batch=split.micro, start_step=start, stop_step=config.train.iterations,
        reading=Reading(data.workers, data.prefetch_mb, copy=False), **shown)


def make_plan(config: Config, shards: ShardSet) -> GlobalBatchSampler:
    """The order of samples that the settings ask for.

    Args:
        config: settings.
        shards: the training set.

    Returns:
        The order.
    """
    data, rows = config.data, shards.shard_rows
    if data.order == "global" or (data.order == "auto" and len(rows) <= MANY_SHARDS):
        rows = None
    return GlobalBatchSampler(len(shards), config.train.global_batch, config.train.seed, rows,
                              data.window, data.last_batch)
