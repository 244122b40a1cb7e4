"""A warm-up of the classifiers alone on frozen features, before the training proper.

Each image is encoded once; many updates with large batches then cost seconds. It is meant for
backbones that come pretrained: where CAMs are poor, every other term learns from poor masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from more.config.schema import Config
from more.data.loader import make_eval_loader
from more.data.shards.reader import ShardSet
from more.losses.classification import multilabel_soft_margin
from more.model.network import MoReNetwork, feature_maps
from more.progress import track

CHECK_EVERY = 10  # updates


@dataclass(frozen=True)
class Features:
    """Frozen patch features of some images: main and auxiliary [n,D,h,w] in half, tags [n,C]."""

    main: Tensor
    aux: Tensor
    tags: Tensor


def warm_heads(network: MoReNetwork, data: ShardSet, config: Config,
               quiet: bool = False, check: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Train the two classifiers for `head_warmup.updates` updates; everything else stays.

    Every rank does the same on the same images, so that none has to wait for data of another.

    Args:
        network: with its pretrained weights, on its device; changed in place.
        data: training set; at most `head_warmup.images` of it, evenly spread, are used.
        config: settings.
        quiet: no progress bar.
        check: called now and then by all ranks at the same places; what it raises ends the work.

    Returns:
        {"cls", "cls_aux", "background", "centre"}: the terms of the last update.
    """
    settings = config.head_warmup
    features = encode(network, data, config, quiet, check)
    if network.pooling == "competitive":
        network.contest.set_centre(features.main)
        network.aux_contest.set_centre(features.aux)
    optimizer = torch.optim.AdamW(network.head_parameters(), lr=settings.lr,
                                  betas=tuple(config.optim.betas), eps=config.optim.eps,
                                  weight_decay=config.optim.weight_decay)
    generator = torch.Generator().manual_seed(config.train.seed)
    device, terms = next(network.parameters()).device, {}
    with track(settings.updates, "head warm-up", unit="updates", disable=quiet) as bar:
        for update in range(settings.updates):
            if update % CHECK_EVERY == 0:
                check()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 - update / settings.updates)
            rows = torch.randperm(len(features.tags), generator=generator)[:settings.batch]
            terms = _terms(network, *(part[rows].to(device).float() for part in (
                features.main, features.aux, features.tags)))
            total = (terms["cls"] + terms["cls_aux"]
                     + settings.background * terms["background"]
                     + settings.centre * terms["centre"])
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            bar.advance(1)
    optimizer.zero_grad()
    return {name: float(value.detach()) for name, value in terms.items()}


@torch.no_grad()
def encode(network: MoReNetwork, data: ShardSet, config: Config, quiet: bool,
           check: Callable[[], None] = lambda: None) -> Features:
    """Whole images at crop size through the frozen encoder, kept in half precision on the CPU."""
    count = min(config.head_warmup.images, len(data))
    rows = torch.linspace(0, len(data) - 1, count).round().long().tolist()
    device, parts = next(network.parameters()).device, ([], [], [])
    network.eval()
    with track(count, "encoding for the head warm-up", unit="images", disable=quiet) as bar:
        for batch in make_eval_loader(data, config.data.crop, batch_size=config.inference.batch,
                                      indices=rows, masks=False, workers=config.data.workers,
                                      mean=config.data.mean, std=config.data.std):
            check()
            with torch.autocast(device.type, torch.bfloat16,
                                enabled=config.precision == "bf16"):
                main, aux = feature_maps(network.encoder(batch["images"].to(device)))
            for part, value in zip(parts, (main, aux, batch["tags"]), strict=True):
                part.append(value.half().cpu())
            bar.advance(len(batch["tags"]))
    network.train()
    return Features(*(torch.cat(part) for part in parts))


def _terms(network: MoReNetwork, main: Tensor, aux: Tensor, tags: Tensor) -> dict[str, Tensor]:
    logits, aux_logits = network.class_logits(main, aux)
    background = centre = logits.new_zeros(())
    if network.pooling == "competitive":
        maps = network.class_maps(main, aux)
        background = sum(map(_background, maps)) / tags.shape[1]
        centre = sum(_at_the_border(probabilities, tags) for probabilities in maps)
    return {"cls": multilabel_soft_margin(logits, tags),
            "cls_aux": multilabel_soft_margin(aux_logits, tags),
            "background": background, "centre": centre}


def _background(probabilities: Tensor) -> Tensor:
    """-log of the mean background probability over an image's likeliest half, batch mean."""
    background = (1 - probabilities.sum(1)).flatten(1)
    likeliest = background.topk(max(1, background.shape[1] // 2)).values.mean(1)
    return F.binary_cross_entropy(likeliest.clamp(0, 1), torch.ones_like(likeliest))


def _at_the_border(probabilities: Tensor, tags: Tensor) -> Tensor:
    """How much likelier a class is near the image's border than in all of it; mean over tags.

    Which side a class takes, the object or what lies around it, is decided in the first updates,
    and both classify. Objects are seldom at the border only: this tells the two apart.

    Args: probabilities [B,C,h,w], tags [B,C].
    """
    height, width = probabilities.shape[2:]
    down, across = max(1, height // 8), max(1, width // 8)
    inner = probabilities[:, :, down:height - down, across:width - across]
    border = (probabilities.sum((2, 3)) - inner.sum((2, 3))) / (
        height * width - inner.shape[2] * inner.shape[3])
    ratio = border / (probabilities.mean((2, 3)) + 1e-3)
    return (ratio * tags).sum() / tags.sum().clamp(min=1)
