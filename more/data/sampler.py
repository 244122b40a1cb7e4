"""Batch samplers of the training loader: the micro-batches of one rank, in order and in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from more.data.batch_order import GlobalBatchSampler
from more.errors import UserError


class SampleKey(NamedTuple):
    """One sample to load, and where it goes.

    Attributes:
        index: row of the set.
        slot: place in the global batch.
        epoch: number of the epoch.
        chunk: number of the chunk since the loader's start.
        place: place in the chunk.
    """

    index: int
    slot: int
    epoch: int
    chunk: int = 0
    place: int = 0


class MicroBatches(Sampler[list[SampleKey]]):
    """Yields the micro-batches of one rank from a global step on.

    Each global step gives `global_batch / (world · micro_batch)` micro-batches one after the
    other (gradient accumulation).

    Args:
        plan: the global order.
        rank: number of this process.
        world: number of processes.
        micro_batch: images per forward pass.
        start_step: first global step.
        stop_step: end (exclusive); None never ends.

    Raises:
        UserError: the rank's share is not a multiple of the micro-batch.
    """

    def __init__(self, plan: GlobalBatchSampler, rank: int = 0, world: int = 1,
                 micro_batch: int | None = None, start_step: int = 0,
                 stop_step: int | None = None):
        self.plan, self.slots = plan, plan.rank_slice(rank, world)
        share = self.slots.stop - self.slots.start
        self.micro_batch = share if micro_batch is None else micro_batch
        if self.micro_batch < 1 or share % self.micro_batch:
            raise UserError(f"{share} images per rank in micro-batches of {self.micro_batch}",
                            fix=f"choose a micro-batch that divides {share}")
        self.accumulation = share // self.micro_batch
        self.start_step, self.stop_step = start_step, stop_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            batch, epochs = self.plan.batch(step)
            for first in range(self.slots.start, self.slots.stop, self.micro_batch):
                yield [SampleKey(int(batch[slot]), slot, int(epochs[slot]))
                       for slot in range(first, first + self.micro_batch)]
            step += 1

    def __len__(self) -> int:
        if self.stop_step is None:
            raise TypeError("an endless sampler has no length")
        return max(self.stop_step - self.start_step, 0) * self.accumulation


class Chunks(Sampler[list[SampleKey]]):
    """Groups micro-batches into chunks; a loader process loads one chunk at a time.

    Handing something from one process to another costs about half a millisecond, whatever its
    size: as much as loading half an image. So it is done once for several micro-batches.

    Args:
        batches: the micro-batches.
        size: micro-batches in a chunk; the last one may hold fewer.
    """

    def __init__(self, batches: MicroBatches, size: int):
        self.batches, self.size = batches, size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batches = iter(self.batches)
        for number in itertools.count():
            keys = list(itertools.chain(*itertools.islice(batches, self.size)))
            if not keys:
                return
            yield [key._replace(chunk=number, place=place) for place, key in enumerate(keys)]
