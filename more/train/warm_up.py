"""A warm-up of the classifiers alone on frozen features, before the training proper.

Each image is encoded once; many updates with large batches then cost seconds. It is meant for
backbones that come pretrained: where CAMs are poor, every other term learns from poor masks.

B images of a batch, n images in all and m of them on this rank, C classes, D channels, h×w patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from more.config.schema import Config
from more.data.loader import make_eval_loader
from more.data.shards.reader import ShardSet
from more.method.losses.classification import multilabel_soft_margin
from more.method.network import MoReNetwork, feature_maps
from more.progress import track
from more.train.distributed import ALONE, World

CHECK_EVERY = 10  # updates


@dataclass(frozen=True)
class Features:
    """Frozen patch features: main and auxiliary [m,D,h,w] in half, of the images that this rank
    holds (each `world`-th); tags [n,C] of all images."""

    main: Tensor
    aux: Tensor
    tags: Tensor


def warm_heads(network: MoReNetwork, data: ShardSet, config: Config, quiet: bool = False,
               world: World = ALONE, check: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Train the two classifiers for `head_warmup.updates` updates; everything else stays.

    Every rank encodes and keeps its share of the images. An update takes the same images whatever
    the number of ranks: each rank computes the terms of those that it holds, and gradients are
    summed, so that all ranks end with the same classifiers.

    Args:
        network: with its pretrained weights, on its device; changed in place.
        data: training set; at most `head_warmup.images` of it, evenly spread, are used.
        config: settings.
        quiet: no progress bar.
        world: ranks; all of them call it.
        check: called now and then by all ranks at the same places; what it raises ends the work.

    Returns:
        {"cls", "cls_aux", "background", "centre"}: the terms of the last update.
    """
    settings = config.head_warmup
    features = encode(network, data, config, quiet, world, check)
    if network.pooling == "competitive":
        held = len(range(world.rank, len(features.tags), world.size)) / len(features.tags)
        network.contest.set_centre(features.main, held, world.sum)
        network.aux_contest.set_centre(features.aux, held, world.sum)
    optimizer = torch.optim.AdamW(network.head_parameters(), lr=settings.lr,
                                  betas=tuple(config.optim.betas), eps=config.optim.eps,
                                  weight_decay=config.optim.weight_decay)
    generator, terms = torch.Generator().manual_seed(config.train.seed), {}
    with track(settings.updates, "head warm-up", unit="updates", disable=quiet) as bar:
        for update in range(settings.updates):
            if update % CHECK_EVERY == 0:
                check()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 - update / settings.updates)
            rows = torch.randperm(len(features.tags), generator=generator)[:settings.batch]
            terms = _terms(network, features, rows, world)
            total = (terms["cls"] + terms["cls_aux"]
                     + settings.background * terms["background"]
                     + settings.centre * terms["centre"])
            optimizer.zero_grad()
            total.backward()
            _sum_gradients(network, world)
            optimizer.step()
            bar.advance(1)
    optimizer.zero_grad()
    values = world.sum(torch.stack([*terms.values()]).detach())
    return dict(zip(terms, values.tolist(), strict=True))


def _sum_gradients(network: MoReNetwork, world: World) -> None:
    """Add up the classifiers' gradients of all ranks, in one reduction."""
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in network.head_parameters()
                 if parameter.grad is not None]
    whole = world.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def encode(network: MoReNetwork, data: ShardSet, config: Config, quiet: bool,
           world: World = ALONE, check: Callable[[], None] = lambda: None) -> Features:
    """This rank's images at crop size through the frozen encoder, kept in half on the CPU.

    With fewer images than ranks, a rank that has none of them holds the first one, unused.

    Args:
        network: with its pretrained weights, on its device.
        data: training set.
        config: settings.
        quiet: no progress bar.
        world: ranks; all of them call it.
        check: called now and then by all ranks at the same places; what it raises ends the work.

    Returns:
        Features of this rank's images, and the tags of all images.
    """
    count = min(config.head_warmup.images, len(data))
    rows = torch.linspace(0, len(data) - 1, count).round().long().tolist()
    own = rows[world.rank::world.size] or rows[:1]
    device, kept, done = next(network.parameters()).device, [], 0
    # Ranks meet in a check, so each makes as many as the one with the fewest batches can.
    checks = count // world.size // config.inference.batch
    network.eval()
    with track(len(own), "encoding for the head warm-up", unit="images", disable=quiet) as bar:
        for batch in make_eval_loader(data, config.data.crop, batch_size=config.inference.batch,
                                      indices=own, masks=False, workers=config.data.workers,
                                      mean=config.data.mean, std=config.data.std):
            if done // config.inference.batch < checks:
                check()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.in_bf16):
                found = feature_maps(network.encoder(batch["images"].to(device)))
            kept = kept or [_room(part, len(own)) for part in found]
            size = len(batch["tags"])
            for whole, part in zip(kept, found, strict=True):
                whole[done:done + size].copy_(part)
            done += size
            bar.advance(size)
    network.train()
    return Features(*kept, torch.from_numpy(data.tags[rows].astype(np.float32)))


def _room(part: Tensor, images: int) -> Tensor:
    """Room on the CPU for so many images' features like `part`, in half, made once: to join
    batches at the end would take all of it twice."""
    # In the same order of memory (channels last): sums over it then keep their bits.
    memory = (torch.channels_last if part.stride(1) < part.stride(3)
              else torch.contiguous_format)
    return torch.empty((images, *part.shape[1:]), dtype=torch.half, memory_format=memory)


def _terms(network: MoReNetwork, features: Features, rows: Tensor, world: World
           ) -> dict[str, Tensor]:
    """This rank's part of the terms of an update on the images `rows`; over ranks they add up."""
    device, count = next(network.parameters()).device, float(features.tags[rows].sum())
    own = rows[rows % world.size == world.rank]
    share = len(own) / len(rows)
    # A rank that holds none of them adds nothing, by way of an image that counts 0 times.
    places = own // world.size if len(own) else torch.zeros(1, dtype=torch.long)
    tags = (features.tags[own] if len(own) else torch.zeros_like(features.tags[:1])).to(device)
    main, aux = (part[places].to(device).float() for part in (features.main, features.aux))
    logits, aux_logits = network.class_logits(main, aux)
    background = centre = logits.new_zeros(())
    if network.pooling == "competitive":
        maps = network.class_maps(main, aux)
        background = sum(map(_background, maps)) / tags.shape[1]
        centre = sum(_at_the_border(probabilities, tags, count) for probabilities in maps)
    return {"cls": share * multilabel_soft_margin(logits, tags),
            "cls_aux": share * multilabel_soft_margin(aux_logits, tags),
            "background": share * background, "centre": centre}


def _background(probabilities: Tensor) -> Tensor:
    """-log of the mean background probability over an image's likeliest half, batch mean."""
    background = (1 - probabilities.sum(1)).flatten(1)
    likeliest = background.topk(max(1, background.shape[1] // 2)).values.mean(1)
    return F.binary_cross_entropy(likeliest.clamp(0, 1), torch.ones_like(likeliest))


def _at_the_border(probabilities: Tensor, tags: Tensor, count: float = 0.0) -> Tensor:
    """How much likelier a class is near the image's border than in all of it; mean over tags.

    Which side a class takes, the object or what lies around it, is decided in the first updates,
    and both classify. Objects are seldom at the border only: this tells the two apart.

    Args:
        probabilities: [B,C,h,w].
        tags: [B,C].
        count: tags of the update over all ranks, where these images are a part of it.
    """
    height, width = probabilities.shape[2:]
    down, across = max(1, height // 8), max(1, width // 8)
    inner = probabilities[:, :, down:height - down, across:width - across]
    border = (probabilities.sum((2, 3)) - inner.sum((2, 3))) / (
        height * width - inner.shape[2] * inner.shape[3])
    ratio = border / (probabilities.mean((2, 3)) + 1e-3)
    return (ratio * tags).sum() / max(count or float(tags.sum()), 1.0)
