"""From settings to objects: network, objective, optimiser, DeepSpeed's dict, batch split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from more.config.schema import Config, DataConfig
from more.data.plan import GlobalBatchSampler
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform
from more.errors import UserError
from more.losses.objective import Objective, Recipe
from more.model.network import MoReNetwork, parameter_groups
from more.model.pretrained import build_network

SMALLEST_GRID = 7


def make_network(config: Config, load_weights: bool = True) -> MoReNetwork:
    """The network of a configuration, seeded by `train.seed`.

    Args:
        config: the run's settings.
        load_weights: read the backbone's pretrained weights; False when a checkpoint follows.

    Raises:
        UserError: unknown backbone, weights that do not fit, a patch grid too small for URE.
    """
    model = config.model
    torch.manual_seed(config.train.seed)
    network = build_network(
        model.backbone, model.num_classes, model.image_size or config.data.crop,
        weights=model.weights if load_weights else "none", aux_layer=model.aux_layer,
        regularising_tokens=model.regularising_tokens, decoder_width=model.decoder_width,
        pooling=model.pooling, token_init=model.token_init, token_noise=model.token_noise,
        regularising_std=model.regularising_std, register_init=model.register_init,
        token_attention=model.token_attention,
        graph=model.graph, graph_neighbours=model.graph_neighbours, graph_gate=model.graph_gate,
        graph_output=model.graph_output, graph_similarity=model.graph_similarity,
        lam_similarity=model.lam_similarity, vit_kwargs=dict(model.vit))
    if model.gradient_checkpointing:
        network.encoder.set_grad_checkpointing(True)
    _check_views(config, network.encoder.patch_size)
    side = config.data.crop // network.encoder.patch_size
    if config.loss.weights.ure and side < SMALLEST_GRID:
        raise UserError(
            f"data.crop = {config.data.crop} gives a grid of {side}×{side} patches; the "
            f"uncertain-region term needs at least {SMALLEST_GRID}",
            f"set data.crop to {SMALLEST_GRID * network.encoder.patch_size} or more, or "
            "loss.weights.ure=0")
    return network


def _check_views(config: Config, patch: int) -> None:
    """Every view of an image must hold a patch; found out after training it would be too late."""
    sizes = {"data.crop": (config.data.crop, config.cam.scales),
             "inference.scales": (config.inference.size, config.inference.scales),
             "inference.segment_scales": (config.inference.size, config.inference.segment_scales)}
    for key, (size, scales) in sizes.items():
        if int(size * min(scales)) < patch:
            raise UserError(f"{key}: the smallest view has {int(size * min(scales))} pixels, less "
                            f"than a patch of {patch}", "raise the size or the smallest scale")


def make_objective(config: Config) -> Objective:
    """The weighted sum of all terms with its switches (see `more.losses.objective`)."""
    cam, loss = config.cam, config.loss
    return Objective(Recipe(
        weights=asdict(loss.weights), start=asdict(loss.start), high=cam.high, low=cam.low,
        cre_high=cam.cre_high, cre_low=cam.cre_low, late_high=cam.late_high,
        late_low=cam.late_low, late_after=cam.late_after, temperature=loss.temperature,
        mcl_form=loss.mcl_form, cre_similarity=loss.cre_similarity,
        cre_reduction=loss.cre_reduction, ure_form=loss.ure_form,
        pseudo_label=loss.pseudo_label, exclude_padding=loss.exclude_padding,
        par_dilations=tuple(cam.par_dilations), par_iterations=cam.par_iterations,
        energy_weight=loss.energy_weight, energy_sigma_rgb=loss.energy_sigma_rgb,
        energy_sigma_xy=loss.energy_sigma_xy))


def make_optimizer(config: Config, network: MoReNetwork) -> torch.optim.AdamW:
    """AdamW over the five released groups; class and regularising tokens form a group of their own
    where their rate differs or where the blocks start frozen.

    Every group carries `name` and `freezable` (true for the encoder's blocks and norms).
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
    fused = next(network.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps,
                             fused=fused or None)


def make_transform(data: DataConfig) -> TrainTransform:
    """The random view of a training image."""
    return TrainTransform(data.crop, data.augment, data.pipeline, area=(data.min_area, 1.0),
                          jitter_probability=data.jitter)


def make_plan(config: Config, shards: ShardSet) -> GlobalBatchSampler:
    """The order of samples."""
    data = config.data
    rows = shards.shard_rows if data.order == "shards" else None
    return GlobalBatchSampler(len(shards), config.train.global_batch, config.train.seed, rows,
                              data.window, data.last_batch)


@dataclass(frozen=True)
class BatchSplit:
    """How the global batch is spread: `micro` images a pass, `accumulation` passes an update."""

    global_batch: int
    micro: int
    accumulation: int


def split_batch(global_batch: int, world: int, micro_limit: int = 0) -> BatchSplit:
    """Spread the global batch over ranks; accumulate where a rank's share exceeds the limit.

    Raises:
        UserError: the global batch cannot be divided evenly.
    """
    if global_batch % world:
        near = max(world, round(global_batch / world) * world)
        raise UserError(f"train.global_batch = {global_batch} cannot be spread over {world} ranks",
                        f"set train.global_batch={near} or start a number of ranks that divides it")
    share = global_batch // world
    limit = micro_limit or share
    micro = next(size for size in range(min(share, limit), 0, -1) if share % size == 0)
    return BatchSplit(global_batch, micro, share // micro)


def deepspeed_dict(config: Config, split: BatchSplit) -> dict[str, Any]:
    """DeepSpeed's JSON. `gradient_clipping` is always written: left out it means 1.0."""
    engine = config.deepspeed
    return {
        "train_micro_batch_size_per_gpu": split.micro,
        "gradient_accumulation_steps": split.accumulation,
        "gradient_clipping": config.optim.clip,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": engine.bucket_mb * 2**20 // 4,
            "allgather_bucket_size": engine.bucket_mb * 2**20 // 4,
        },
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
