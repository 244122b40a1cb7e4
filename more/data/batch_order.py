"""Which samples make up which global batch: pure functions of (seed, step), no torch.

The order does not depend on ranks, workers or micro-batches. So it is the same for every world
size, and one integer, the global step, is the whole state of the sampler.

With local reads, an epoch's order is made like this: the shards, in random order, form one long
sequence of samples. It is cut into as many pieces as a batch has places, and place k of every batch
takes its samples from piece k. A rank owns neighbouring places, hence a whole stretch of the
sequence: it reads whole shards that hardly any other rank reads, however many ranks there are,
while the samples of one batch come from all over the set.
"""

from __future__ import annotations

from collections.abc import Sequence

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
