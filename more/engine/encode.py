"""Fill a store with what frozen blocks make of views of images; every rank does its share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from more.config.schema import Config, SegmentConfig
from more.data.colours import prepare
from more.data.dataset import TrainDataset
from more.data.loader import make_view_loader
from more.data.sampler import SampleKey
from more.data.shards.lock import folder_lock
from more.data.tokens import TokenStore, row_bytes
from more.engine.distributed import World
from more.errors import UserError
from more.model.network import MoReNetwork
from more.progress import track


def views_that_fit(segment: SegmentConfig, images: int, shape: tuple[int, int]) -> int:
    """How many views of each image `segment.cache_gb` has room for; `segment.views` at most."""
    return min(segment.views, int(segment.cache_gb * 1e9 // (images * row_bytes(shape))))


def fill(store: TokenStore, network: MoReNetwork, views: TrainDataset, config: Config,
         frozen: int, world: World, say: Callable[[str], None]) -> None:
    """Compute the rows that a store lacks; an interrupted filling goes on.

    Args:
        store: of `segment.views` (or fewer) views of every image.
        network: with its weights, on its device.
        views: of the images; view v is that of epoch v.
        config: settings.
        frozen: blocks to run.
        world: ranks; each fills a stretch of rows.
        say: told what is reused.

    Raises:
        UserError: no space, or another run fills the same store; on every rank.
    """
    if world.agree(store.complete if world.main else None):
        say(f"tokens of {store.rows} views are there: {store.path}")
        return
    lock, told = None, None
    if world.main:
        try:
            store.path.mkdir(parents=True, exist_ok=True)
            lock = folder_lock(store.path)
            lock.__enter__()
            store.create()
        except UserError as error:
            told = (error.message, error.fix)
    told = world.agree(told)
    try:
        if told is not None:
            raise UserError(*told)
        own = range(world.rank * store.rows // world.size,
                    (world.rank + 1) * store.rows // world.size)
        _fill(store, own, network, views, config, frozen, world)
        store.flush()
        world.barrier()
        if world.main:
            store.finish()
        world.barrier()
    finally:
        if lock is not None:
            lock.__exit__(None, None, None)


@torch.no_grad()
def _fill(store: TokenStore, own: range, network: MoReNetwork, views: TrainDataset,
          config: Config, frozen: int, world: World) -> None:
    """This rank's rows."""
    data, count = config.data, len(views)
    rows = store.missing(own)
    keys = [SampleKey(row % count, 0, row // count) for row in rows]
    network.eval()
    with track(len(rows), "tokens of frozen blocks", unit="views",
               disable=not world.main) as bar:
        place = 0
        for batch in make_view_loader(views, keys, config.inference.batch, data.workers):
            images = prepare(batch, world.device, data.mean, data.std)
            with torch.autocast(world.device.type, torch.bfloat16,
                                enabled=config.precision == "bf16"):
                tokens = network.encoder.lower(images, frozen).half().cpu().numpy()
            windows, boxes = batch["window"].numpy(), batch["box"].numpy()
            for number in range(len(tokens)):
                store.write(rows[place + number], tokens[number],
                            np.concatenate([windows[number], boxes[number]]).astype(np.float64))
            place += len(tokens)
            bar.advance(len(tokens))
    network.train()
