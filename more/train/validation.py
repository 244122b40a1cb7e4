"""Scores while training: CAM, LAM (true tags) and decoder at one scale, over all ranks.

R routes that are scored, B images of a batch, S side of the network input, H×W pixels of an image,
K classes with the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from more.config.schema import Config
from more.data.loader import make_eval_loader
from more.data.shards.reader import ShardSet
from more.evaluation.metrics import scores
from more.method.cam import minmax
from more.method.labels import cam_to_label
from more.train.distributed import World


@torch.no_grad()
def validate(network: torch.nn.Module, data: ShardSet, config: Config, world: World,
             routes: Sequence[str] = ("cam", "lam", "decoder"),
             stopping: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """mIoU in percent of some routes, one scale, no flip; a quick look, not the final score.

    Args:
        network: `MoReNetwork`.
        data: shard set with masks; rank r takes images r, r + world, …
        config: settings (`inference.size`, thresholds, `eval.images`).
        world: ranks; the confusion matrices are summed over them.
        routes: among "cam", "lam" and "decoder".
        stopping: asked before every batch, by all ranks, so that they may answer with one voice.

    Returns:
        {"cam": …, "lam": …, "decoder": …}, as far as asked for; None where it was stopped.
    """
    network.eval()
    classes, device = data.num_classes + 1, world.device
    totals = torch.zeros(len(routes), classes * classes, dtype=torch.long, device=device)
    limit = min(config.eval.images or len(data), len(data))
    batches = make_eval_loader(data, config.inference.size, batch_size=config.inference.batch,
                               rank=world.rank, world=world.size, indices=range(limit),
                               mean=config.data.mean, std=config.data.std,
                               workers=config.data.workers)
    for batch in batches:
        if stopping():
            return None
        labels = _labels(network, batch["images"].to(device, non_blocking=True),
                         batch["tags"].to(device, non_blocking=True), config, routes)
        for row, truth in enumerate(batch["masks"]):
            _count(totals, truth.to(device, non_blocking=True), labels[:, row], classes)
    # ZeRO 3 gathers weights in every forward: a rank with fewer batches has to join in.
    most = math.ceil(math.ceil(limit / world.size) / config.inference.batch)
    for _ in range(most - len(batches)):
        if stopping():
            return None
        side = config.inference.size
        _labels(network, torch.zeros(1, 3, side, side, device=device),
                torch.zeros(1, data.num_classes, device=device), config, routes)
    counts = world.sum(totals).view(-1, classes, classes).cpu().numpy()
    return {name: 100 * scores(matrix).miou
            for name, matrix in zip(routes, counts, strict=True)}


def _labels(network: torch.nn.Module, images: torch.Tensor, tags: torch.Tensor,
            config: Config, routes: Sequence[str]) -> torch.Tensor:
    """Label maps uint8 `[R,B,S,S]` of some routes at the inference size, from one forward."""
    return torch.stack([route_label(name, values, tags, config)
                        for name, values in route_maps(network, images, config, routes)])


def route_maps(network: torch.nn.Module, images: torch.Tensor, config: Config,
               routes: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """What some routes say of images, from one forward; one after another, since they are large.

    Args:
        network: `MoReNetwork`.
        images: normalised, `[B,3,S,S]`.
        config: settings.
        routes: among "cam", "lam" and "decoder".

    Yields:
        A route, and its class maps `[B,C,S,S]` in 0..1; of "decoder" logits `[B,C+1,S,S]`.
    """
    size = images.shape[-2:]
    images = images.to(next(network.parameters()).dtype)  # half under fp16
    mode = "segment" if set(routes) == {"decoder"} else (
        "scores" if "decoder" in routes else "maps")
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        found = network(images, mode=mode)
    for name in routes:
        if name == "decoder":
            logits = (found if mode == "segment" else found["segment"]).float()
            yield name, F.interpolate(logits, size, mode="bilinear")
        else:
            raw = found[name].float()
            yield name, minmax(F.interpolate(raw.relu() if name == "cam" else raw, size,
                                             mode="bilinear"))


def route_label(name: str, values: torch.Tensor, tags: torch.Tensor, config: Config
                ) -> torch.Tensor:
    """Label maps uint8 `[B,S,S]` of what `route_maps` gives.

    Args:
        name: the route.
        values: its maps or logits.
        tags: true tags `[B,C]`.
        config: settings (thresholds).
    """
    if name == "decoder":
        return values.argmax(1).byte()
    at = {"cam": config.cam.background, "lam": config.inference.threshold}[name]
    return cam_to_label(values, tags, background=at, ignore_middle=False).byte()


def _count(totals: torch.Tensor, truth: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """Add an image's confusion counts to `totals` `[R,K·K]`, without waiting for the device.

    Args:
        totals: counts of truth and prediction, `[R,K·K]`, changed in place.
        truth: uint8 `[H,W]`; values from `classes` on count nowhere.
        labels: uint8 `[R,S,S]`.
        classes: K, with the background.
    """
    predicted = F.interpolate(labels[None].float(), truth.shape, mode="nearest")[0].flatten(1)
    truth = truth.flatten().long()
    counted = (truth < classes).long()
    places = truth.clamp(max=classes - 1) * classes + predicted.long()
    totals.scatter_add_(1, places, counted.expand_as(places))
