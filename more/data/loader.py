"""Batches for training and inference: DataLoaders whose order is fixed beforehand.

A training batch is a dictionary:

| key | content |
|---|---|
| images | uint8 `[b, S, S, 3]`; `more.data.colours.network_input` makes network input of them |
| jitter, box | float32 `[b, 13]` and int64 `[b, 4]`, what `network_input` needs beside them |
| tags | float32 `[b, C]` |
| indices, slots | int64 `[b]`: row of the set, place in the global batch |

b is the number of images in a batch, C that of classes, S the side of a view or of the network
input in pixels, H and W the height and width of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from more.data.batch_order import Chunks, GlobalBatchSampler, MicroBatches, SampleKey
from more.data.dataset import EvalDataset, Masks, TokenDataset, TrainDataset, collate
from more.data.loader_processes import BatchRing, held_signals, pinned_ahead, start_worker
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore
from more.data.transforms import TrainTransform
from more.device import local_device
from more.errors import UserError


class Batches:
    """Iterates over a DataLoader; a user error inside a worker is raised here as it was there.

    (A DataLoader by itself would wrap it into the worker's traceback.) Small arrays travel as NumPy
    arrays and become tensors here: each tensor that passes between processes costs about a
    millisecond.

    Attributes:
        loader: the DataLoader.
        sampler: which samples make up which batch.
        ring: where loader processes leave the pixels, or None. With a ring the loader delivers
            chunks of several batches.
        copy: hand over copies of the pixels in the ring.
        pin: hand over copies in pinned memory, which a thread makes.
    """

    def __init__(self, loader: DataLoader, sampler: Any, ring: BatchRing | None = None,
                 copy: bool = True, pin: bool = False):
        self.loader, self.sampler, self.ring, self.copy = loader, sampler, ring, copy
        self.pin = pin

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with held_signals():  # of processes that it starts
            batches = iter(self.loader)
        made = self._made(batches)
        yield from pinned_ahead(made) if self.pin else made

    def _made(self, batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            if isinstance(batch, _Failure):
                raise UserError(batch.message, batch.fix)
            batch = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                     for key, value in batch.items()}
            yield from [batch] if self.ring is None else self._unpack(batch)

    def _unpack(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        numbers = chunk.pop("chunk").tolist()
        for first in range(0, len(numbers), self.sampler.micro_batch):
            part = slice(first, first + self.sampler.micro_batch)
            yield {**{key: value[part] for key, value in chunk.items()},
                   "images": self.ring.take(numbers[0], part, self.copy and not self.pin)}


class _Guarded(Dataset):
    """A dataset that hands back a user error in place of the sample."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return _Failure(error.message, error.fix)


class _Failure:
    """A user error that travels to the main process in place of a batch."""

    def __init__(self, message: str, fix: str | None):
        self.message, self.fix = message, fix


def _collate(samples: Sequence[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate(samples)


@dataclass(frozen=True)
class Reading:
    """How a training loader reads; none of it changes a single sample.

    Attributes:
        workers: loader processes; 0 loads in this process.
        prefetch_mb: megabytes of finished micro-batches that may wait, per rank.
        context: how loader processes start: "fork", "spawn" or "forkserver".
        copy: False hands over pixels in the loader's own memory where it can; they hold until the
            next batch is asked for.
    """

    workers: int = 0
    prefetch_mb: int = 256
    context: str = "fork"
    copy: bool = True


def make_train_loader(shards: ShardSet, transform: TrainTransform, plan: GlobalBatchSampler, *,
                      rank: int = 0, world: int = 1, micro_batch: int | None = None,
                      start_step: int = 0, stop_step: int | None = None,
                      reading: Reading | None = None, masks: Masks | None = None,
                      views: int = 0, store: TokenStore | None = None,
                      tokens: TokenDataset | None = None) -> Batches:
    """The micro-batches of one rank, from global step `start_step` on.

    `batches.sampler.accumulation` micro-batches make one global step. The samples and their order
    do not depend on the number of ranks, the micro-batch or the number of workers.

    Args:
        shards: a set of kind "images".
        transform: makes a random view.
        plan: which samples make up which global step.
        rank, world: number of this process, and of all.
        micro_batch: images per forward pass; None = the rank's whole share.
        start_step: global step to start or resume at.
        stop_step: end (exclusive); None never ends.
        reading: processes and memory.
        masks, views, store: see `TrainDataset`.
        tokens: read these in place of images; `shards` and `transform` are then not used.

    Returns:
        The micro-batches, as at the top of this file.

    Raises:
        UserError: batch sizes that do not divide, or a damaged image.
    """
    reading, pin = reading or Reading(), local_device().type == "cuda"
    batches = MicroBatches(plan, rank, world, micro_batch, start_step, stop_step)
    if tokens is not None:
        return Batches(_loader(tokens, batches, reading.workers, reading.context, pin=False),
                       batches, pin=pin)
    if not reading.workers:
        dataset = TrainDataset(shards, transform, plan.seed, None, masks, views, store)
        return Batches(_loader(dataset, batches, pin=False), batches, pin=pin)
    size, ahead = chunk_sizes(reading, batches.micro_batch, batches.accumulation,
                          transform.size ** 2 * 3)
    # One place more than are under way: the chunk that is being taken.
    ring = BatchRing(reading.workers * ahead + 1, size * batches.micro_batch, transform.size)
    dataset = TrainDataset(shards, transform, plan.seed, ring, masks, views, store)
    loader = _loader(dataset, Chunks(batches, size), reading.workers, reading.context, ahead,
                     pin=False)
    return Batches(loader, batches, ring, reading.copy, pin)


def make_view_loader(dataset: TrainDataset, keys: Sequence[SampleKey], batch_size: int,
                     workers: int = 0, context: str = "fork") -> Batches:
    """Given views of images, in order and each once: to compute what frozen blocks make of them.

    Args:
        dataset: makes the views.
        keys: which views.
        batch_size: images in a batch.
        workers: loader processes; 0 loads in this process.
        context: how they start, see `Reading`.

    Returns:
        Batches as those of `make_train_loader`, with window float64 `[b, 5]` in addition.
    """
    sampler = [list(keys[first:first + batch_size]) for first in range(0, len(keys), batch_size)]
    return Batches(_loader(dataset, sampler, workers, context), sampler)


def chunk_sizes(reading: Reading, micro_batch: int, accumulation: int, image_bytes: int
            ) -> tuple[int, int]:
    """How many micro-batches make a chunk, and how many chunks each worker loads ahead.

    A chunk holds up to 16 images (more would leave the processor's cache), and two global steps are
    loaded ahead, as far as `prefetch_mb` allows; at least one micro-batch and one chunk.

    Args:
        reading: number of workers and memory.
        micro_batch: images per forward pass.
        accumulation: micro-batches of one rank in a global step.
        image_bytes: bytes of the pixels of one view.

    Returns:
        Micro-batches in a chunk, and chunks that each worker loads ahead.
    """
    images = reading.prefetch_mb * 2**20 // image_bytes  # that may wait
    size = max(1, min(16 // micro_batch, images // (2 * reading.workers * micro_batch)))
    wanted = max(2, -(-2 * accumulation // (reading.workers * size)))
    return size, max(1, min(wanted, images // (reading.workers * size * micro_batch)))


def make_eval_loader(shards: ShardSet, size: int, *, batch_size: int = 1, rank: int = 0,
                     world: int = 1, workers: int = 0, masks: bool = True,
                     indices: Sequence[int] | None = None, mean: tuple[float, ...] | None = None,
                     std: tuple[float, ...] | None = None, context: str = "fork") -> Batches:
    """Every image once over all ranks: rank r takes rows r, r + world, …; nothing is repeated.

    Args:
        shards: a set of kind "images".
        size: side of the square network input in pixels.
        batch_size: images in a batch.
        rank: number of this process.
        world: number of processes.
        workers: loader processes; 0 loads in this process.
        masks: also decode the true label maps.
        indices: rows to take instead of all, before they are shared among the ranks.
        mean: of RGB in 0..255; None = ImageNet's.
        std: of RGB in 0..255; None = ImageNet's.
        context: how loader processes start, see `Reading`.

    Returns:
        Batches, each a dictionary: images `[b, 3, S, S]`, tags `[b, C]`, indices `[b]`, sizes
        `[b, 2]` (height, width), masks a list of uint8 tensors `[H, W]` or None.
    """
    rows = list(range(len(shards)) if indices is None else indices)[rank::world]
    sampler = [rows[first:first + batch_size] for first in range(0, len(rows), batch_size)]
    options = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    dataset = EvalDataset(shards, size, masks=masks, **options)
    return Batches(_loader(dataset, sampler, workers, context), sampler)


def _loader(dataset: Dataset, sampler: Any, workers: int = 0, context: str = "fork",
            ahead: int = 2, pin: bool | None = None) -> DataLoader:
    if pin is None:  # by the loader itself: what arrives as tensors
        pin = local_device().type == "cuda"
    # A generator of its own: the loader draws a number when it starts, and a run that was resumed
    # has started it once more than one that was not.
    return DataLoader(_Guarded(dataset), batch_sampler=sampler, num_workers=workers,
                      generator=torch.Generator().manual_seed(0),
                      collate_fn=_collate, worker_init_fn=start_worker if workers else None,
                      persistent_workers=workers > 0, pin_memory=pin,
                      prefetch_factor=ahead if workers else None,
                      multiprocessing_context=context if workers else None)
