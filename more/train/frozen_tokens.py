"""What frozen blocks make of views of images, computed once; every rank does its share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from more.config.schema import Config, TokensConfig
from more.data.batch_order import SampleKey
from more.data.colours import network_input
from more.data.dataset import TrainDataset
from more.data.loader import make_view_loader
from more.data.shards.format import sha256_bytes
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore, row_bytes
from more.errors import UserError
from more.method.network import MoReNetwork
from more.progress import track
from more.train.distributed import World
from more.train.engine import make_transform
from more.train.stop import StopRequest


def kept_tokens(network: MoReNetwork, images: ShardSet, config: Config, frozen: int, run: Path,
                world: World, say: Callable[[str], None], mirrored: bool = False,
                stop: StopRequest | None = None) -> tuple[TokenStore | None, int]:
    """The tokens of views of all images, computed unless they are there; and the number of views.

    Args:
        network: with its weights, on its device.
        images: the training set.
        config: settings.
        frozen: blocks to run.
        run: run folder.
        world: ranks.
        say: told what is computed, reused, or does not fit.
        mirrored: also of the mirrored view.
        stop: what ends the work; the same call goes on with it.

    Returns:
        A complete store, or None where `tokens.gb` holds no view; views that training shows.
    """
    encoder, tokens = network.encoder, config.tokens
    patches = (config.data.crop // encoder.patch_size) ** 2
    shape = (*([2] if mirrored else []), encoder.token_count(patches, frozen), encoder.embed_dim)
    views = views_that_fit(tokens, len(images), shape)
    if not views:
        say(f"tokens.gb = {tokens.gb:g} holds no view of {len(images)} images: the frozen blocks "
            "are run in every update")
        return None, tokens.views
    if views < tokens.views:
        say(f"tokens.gb = {tokens.gb:g} holds {views} of tokens.views = {tokens.views} views")
    store = TokenStore(Path(tokens.folder or run / "tokens"),
                       _facts(network, images, config, frozen), views * len(images), shape)
    shown = TrainDataset(images, make_transform(config.data), config.train.seed)
    fill(store, network, shown, config, frozen, world, say, stop or StopRequest())
    return store, views


def views_that_fit(tokens: TokensConfig, images: int, shape: tuple[int, ...]) -> int:
    """How many views of each image `tokens.gb` has room for; `tokens.views` at most.

    Args:
        tokens: settings.
        images: of the training set.
        shape: of the tokens of a view.

    Returns:
        A number, 0 where there is no room.
    """
    return min(tokens.views, int(tokens.gb * 1e9 // (images * row_bytes(shape))))


def _facts(network: MoReNetwork, images: ShardSet, config: Config, frozen: int) -> dict[str, Any]:
    """All that decides what the frozen blocks make of the views."""
    data, model = config.data, config.model
    return {"model": [model.backbone, model.vit, model.token_attention, model.frozen_blocks],
            "weights": frozen_digest(network, frozen), "frozen": frozen,
            "images": images.manifest.digest, "ids": sha256_bytes("\n".join(images.ids).encode()),
            "seed": config.train.seed, "precision": config.precision,
            "views": {key: getattr(data, key) for key in (
                "crop", "augment", "min_area", "jitter", "pipeline", "mean", "std")}}


def frozen_digest(network: MoReNetwork, frozen: int) -> str:
    """sha256 of the weights below and in the frozen blocks; what is trained has no part in it.

    Args:
        network: with its weights.
        frozen: blocks.

    Returns:
        64 hex digits.
    """
    encoder, digest = network.encoder, hashlib.sha256()
    for name, value in encoder.state_dict().items():
        number = name.split(".")[1] if name.startswith("blocks.") else "-1"
        # Where ours enter above them, the frozen blocks see nothing of the class tokens.
        unseen = name == "cls_token" and frozen == encoder.frozen_blocks
        unseen |= name.startswith("norm.") and frozen < len(encoder.blocks)
        if int(number) < frozen and not unseen:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fill(store: TokenStore, network: MoReNetwork, views: TrainDataset, config: Config,
         frozen: int, world: World, say: Callable[[str], None], stop: StopRequest) -> None:
    """Compute the rows that a store lacks; an interrupted filling goes on.

    Args:
        store: of some views of every image, with the mirrored ones if its shape says so.
        network: with its weights, on its device.
        views: of the images; view v is that of epoch v.
        config: settings.
        frozen: blocks to run.
        world: ranks; each fills a stretch of rows.
        say: told what is reused.
        stop: what ends the work.

    Raises:
        Stopped: on request; on every rank.
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
        own = rank_rows(store.rows, world.rank, world.size)
        _fill(store, own, network, views, config, frozen, world, stop)
        store.flush()
        stop.check()
        world.barrier()
        if world.main:
            store.finish()
        world.barrier()
    finally:
        if lock is not None:
            lock.__exit__(None, None, None)


def rank_rows(rows: int, rank: int, world: int) -> range:
    """The stretch of rows that a rank fills; with an uneven number some get one more.

    Args:
        rows: in all.
        rank: of this process.
        world: number of ranks.

    Returns:
        Numbers of rows.
    """
    return range(rank * rows // world, (rank + 1) * rows // world)


@torch.no_grad()
def _fill(store: TokenStore, own: range, network: MoReNetwork, views: TrainDataset,
          config: Config, frozen: int, world: World, stop: StopRequest) -> None:
    """This rank's rows, until somebody asks to stop."""
    data, count = config.data, len(views)
    rows = store.missing(own)
    keys = [SampleKey(row % count, 0, row // count) for row in rows]
    network.eval()
    with track(len(rows), "tokens of frozen blocks", unit="views",
               disable=not world.main) as bar:
        place = 0
        for batch in make_view_loader(views, keys, config.inference.batch, data.workers):
            if stop.seen():
                break
            images = network_input(batch, world.device, data.mean, data.std)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.in_bf16):
                tokens = network.encoder.lower(images, frozen)
                if len(store.shape) == 3:
                    mirrored = network.encoder.lower(images.flip(-1), frozen)
                    tokens = torch.stack([tokens, mirrored], dim=1)
            tokens = tokens.half().cpu().numpy()
            windows, boxes = batch["window"].numpy(), batch["box"].numpy()
            for number in range(len(tokens)):
                store.write(rows[place + number], tokens[number],
                            np.concatenate([windows[number], boxes[number]]).astype(np.float64))
            place += len(tokens)
            bar.advance(len(tokens))
    network.train()
