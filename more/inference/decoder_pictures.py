"""The decoder's answer to some images of a set: what the report shows of a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from more.data.seeds import SeedItem
from more.data.shards.reader import ShardSet
from more.device import local_device
from more.errors import UserError
from more.inference.localizer import Localizer, Request
from more.inference.trained import class_names, load_run, run_config


def decoder_seeds(run: Path, images: ShardSet, ids: Sequence[str]) -> dict[str, SeedItem] | None:
    """Probabilities of background and classes, as `more localize --map decoder` makes them.

    Args:
        run: run folder with a checkpoint.
        images: the image set.
        ids: of the images to ask about.

    Returns:
        Seeds by id; None if the run has no checkpoint's settings or its decoder was not trained.

    Raises:
        UserError: no complete checkpoint, or the set has other classes than the run.
    """
    if not (run / "config.json").is_file() or not run_config(run).decoder_trained:
        return None
    known = class_names(run)
    if known and known != images.class_names:
        raise UserError(f"{images.path} has other classes than {run}",
                        "give the image set that the run was trained on")
    config, network, _ = load_run(run)
    device = local_device()
    localizer = Localizer(config, network.to(device), Request(("decoder",)), device)
    found: dict[str, SeedItem] = {}
    for start in range(0, len(ids), config.inference.batch):
        part = ids[start:start + config.inference.batch]
        batch = torch.stack([localizer.prepare(images.image(images.index_of(name)))
                             for name in part])
        seeds = localizer(batch, torch.zeros(len(part), images.num_classes))
        found |= {name: item["decoder"] for name, item in zip(part, seeds, strict=True)}
    return found
