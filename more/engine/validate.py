"""Scores while training: CAM, LAM (true tags) and decoder at one scale, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from more.config.schema import Config
from more.data.loader import make_eval_loader
from more.data.shards.reader import ShardSet
from more.engine.distributed import World
from more.evaluation.metrics import confusion_matrix, scores
from more.localization.maps import minmax
from more.localization.regions import cam_to_label


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
    classes = data.num_classes + 1
    totals = {name: torch.zeros(classes, classes, dtype=torch.float64)
              for name in routes}
    limit = min(config.eval.images or len(data), len(data))
    batches = make_eval_loader(data, config.inference.size, batch_size=config.inference.batch,
                               rank=world.rank, world=world.size, indices=range(limit),
                               mean=config.data.mean, std=config.data.std)
    for batch in batches:
        if stopping():
            return None
        labels = _labels(network, batch["images"].to(world.device),
                         batch["tags"].to(world.device), config, routes)
        for row, truth in enumerate(batch["masks"]):
            for name, label in labels.items():
                predicted = _at_size(label[row], truth.shape)
                totals[name] += confusion_matrix(truth, predicted, classes)
    # ZeRO 3 gathers weights in every forward: a rank with fewer batches has to join in.
    most = math.ceil(math.ceil(limit / world.size) / config.inference.batch)
    for _ in range(most - len(batches)):
        if stopping():
            return None
        side = config.inference.size
        _labels(network, torch.zeros(1, 3, side, side, device=world.device),
                torch.zeros(1, data.num_classes, device=world.device), config, routes)
    return {name: 100 * scores(world.sum(total.to(world.device)).cpu().numpy()).miou
            for name, total in totals.items()}


def _labels(network: torch.nn.Module, images: torch.Tensor, tags: torch.Tensor,
            config: Config, routes: Sequence[str]) -> dict[str, torch.Tensor]:
    """Label maps `[B,S,S]` of some routes at the inference size."""
    size = images.shape[-2:]
    images = images.to(next(network.parameters()).dtype)  # half under fp16
    thresholds = {"cam": config.cam.background, "lam": config.inference.threshold}
    wanted = [name for name in routes if name in thresholds]
    maps, result = network(images, mode="maps") if wanted else {}, {}
    for name in wanted:
        raw = maps[name].float()
        full = F.interpolate(raw.relu() if name == "cam" else raw, size, mode="bilinear")
        result[name] = cam_to_label(minmax(full), tags, background=thresholds[name],
                                    ignore_middle=False)
    if "decoder" in routes:
        logits = network(images, mode="segment").float()
        result["decoder"] = F.interpolate(logits, size, mode="bilinear").argmax(1)
    return result


def _at_size(label: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    resized = F.interpolate(label[None, None].float(), shape, mode="nearest")
    return resized[0, 0].byte().cpu().numpy()
