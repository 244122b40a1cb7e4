"""Which samples make up which global batch, and which micro-batches a rank takes of it.

The order is a pure function of (seed, step), and needs no torch. It does not depend on ranks,
workers or micro-batches. So it is the same for every world size, and one integer, the global step,
is the whole state of the sampler.

With local reads, an epoch's order is made like this: the shards, in random order, form one long
sequence of samples. It is cut into as many pieces as a batch has places, and place k of every batch
takes its samples from piece k. A rank owns neighbouring places, hence a whole stretch of the
sequence: it reads whole shards that hardly any other rank reads, however many ranks there are,
while the samples of one batch come from all over the set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from more.errors import UserError

LAST_BATCH = ("drop", "carry")


def epoch_order(n: int, seed: int, epoch: int, shard_rows: Sequence[int] | None = None, *,
                places: int = 1, window: int = 8, used: int | None = None) -> np.ndarray:
    """The order in which the samples of one epoch are used.

    Args:
        n: number of samples.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        shard_rows: rows of each shard, to keep reads local (see the top of this file). None mixes
            all samples.
        places: places in a global batch; each takes its samples from a stretch of its own.
        window: a stretch is shuffled inside runs as long as this many shards.
        used: the caller leaves out the samples after this position; they are drawn evenly.

    Returns:
        int64 `[n]`, a permutation.
    """
    rng = np.random.default_rng([seed, epoch])
    if shard_rows is None:
        return rng.permutation(n).astype(np.int64)
    if sum(shard_rows) != n:
        raise ValueError(f"shards hold {sum(shard_rows)} rows, not {n}")
    starts = np.cumsum([0, *shard_rows])
    row = np.concatenate([np.arange(starts[k], starts[k + 1], dtype=np.int64)
                          for k in rng.permutation(len(shard_rows))])
    rest = np.empty(0, np.int64)
    if used is not None and used < n:
        out = np.sort(rng.choice(n, n - used, replace=False))
        row, rest = np.delete(row, out), row[out]
    place = np.arange(len(row)) % places
    by_place = np.argsort(place, kind="stable")  # positions of the epoch, place after place
    lengths = np.bincount(place, minlength=places)
    within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    run = within // max(window * -(-n // len(shard_rows)), 1)
    shuffled = np.lexsort((rng.random(len(row)), run, place[by_place]))
    order = np.empty(len(row), np.int64)
    order[by_place] = row[shuffled]
    return np.concatenate([order, rest])


class GlobalBatchSampler:
    """Which of `n` samples make up global batch number `step` of an endless run.

    Within an epoch no sample comes twice. The samples after its last full batch are left out
    (`last="drop"`: other ones each time), or share a batch with the first samples of the next epoch
    (`last="carry"`: then no epoch misses one).

    Args:
        n: number of samples.
        global_batch: images per optimiser step over all ranks.
        seed: seed of the run.
        shard_rows: see `epoch_order`.
        window: see `epoch_order`.
        last: "drop" or "carry".

    Raises:
        UserError: fewer samples than one batch.
    """

    def __init__(self, n: int, global_batch: int, seed: int,
                 shard_rows: Sequence[int] | None = None, window: int = 8, last: str = "drop"):
        if not 1 <= global_batch <= n:
            raise UserError(f"a global batch of {global_batch} images from a set of {n}",
                            fix="set train.global_batch between 1 and the number of images")
        if last not in LAST_BATCH:
            raise ValueError(f"last {last!r} is not one of {LAST_BATCH}")
        self.n, self.global_batch, self.seed, self.window = n, global_batch, seed, window
        self.shard_rows = None if shard_rows is None else list(shard_rows)
        self.per_epoch = n if last == "carry" else n // global_batch * global_batch
        self._orders: dict[int, np.ndarray] = {}

    def epoch_of(self, step: int) -> int:
        """Number of the epoch, from 0, of the first sample of global step `step`."""
        return step * self.global_batch // self.per_epoch

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of a global step.

        Args:
            step: number of the step, from 0.

        Returns:
            The samples and the epoch of each, both int64 `[global_batch]`.
        """
        position = step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        epochs = position // self.per_epoch
        samples = np.concatenate([
            self._order(epoch)[position[epochs == epoch] - epoch * self.per_epoch]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)])
        return samples, epochs

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:  # kept only to save work; the result does not depend on it
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = epoch_order(
                self.n, self.seed, epoch, self.shard_rows, places=self.global_batch,
                window=self.window, used=self.per_epoch)
        return self._orders[epoch]

    def rank_slice(self, rank: int, world: int) -> slice:
        """Places in the global batch that one rank works on.

        Args:
            rank: number of the rank.
            world: number of ranks.

        Returns:
            A stretch of `global_batch / world` places.

        Raises:
            UserError: the global batch cannot be shared equally.
        """
        if self.global_batch % world:
            raise UserError(f"a global batch of {self.global_batch} over {world} ranks",
                            fix=f"set train.global_batch to a multiple of {world}")
        share = self.global_batch // world
        return slice(rank * share, (rank + 1) * share)


# Batch samplers: the micro-batches of one rank, in order and in chunks.

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


class MicroBatches:
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


class Chunks:
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
