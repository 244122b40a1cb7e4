"""Which samples make up which global batch: pure functions of (seed, step), no torch.

The order does not know ranks, workers or micro-batches. So it is the same for every world size,
and one integer, the global step, is the whole state of the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from more.errors import UserError


def epoch_order(n: int, seed: int, epoch: int, shard_rows: Sequence[int] | None = None,
                window: int = 8) -> np.ndarray:
    """A permutation of the samples for one epoch, int64 `[n]`.

    Args:
        n: number of samples.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        shard_rows: rows of each shard, to keep reads local on slow file systems: shards are
            permuted, and samples are mixed only inside runs of `window` shards. None mixes all.
        window: shards mixed with one another.
    """
    rng = np.random.default_rng([seed, epoch])
    if shard_rows is None:
        return rng.permutation(n).astype(np.int64)
    if sum(shard_rows) != n:
        raise ValueError(f"shards hold {sum(shard_rows)} rows, not {n}")
    starts = np.cumsum([0, *shard_rows])
    shards = rng.permutation(len(shard_rows))
    runs = [np.concatenate([np.arange(starts[k], starts[k + 1]) for k in shards[i:i + window]])
            for i in range(0, len(shards), window)]
    return np.concatenate([rng.permutation(run) for run in runs]).astype(np.int64)


class GlobalBatchSampler:
    """Global batch number `step` of an endless run over `n` samples.

    Epochs follow one another; what is left of an epoch after its last full batch is dropped
    (other samples each time, since every epoch has its own order).

    Args:
        n: number of samples.
        global_batch: images per optimiser step over all ranks.
        seed: seed of the run.
        shard_rows: see `epoch_order`.

    Raises:
        UserError: fewer samples than one batch.
    """

    def __init__(self, n: int, global_batch: int, seed: int,
                 shard_rows: Sequence[int] | None = None):
        if not 1 <= global_batch <= n:
            raise UserError(f"a global batch of {global_batch} images from a set of {n}",
                            fix="set train.global_batch between 1 and the number of images")
        self.n, self.global_batch, self.seed = n, global_batch, seed
        self.shard_rows = None if shard_rows is None else list(shard_rows)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return self.n // self.global_batch

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, to which global step `step` belongs."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Sample indices of global step `step`, int64 `[global_batch]`."""
        epoch = self.epoch_of(step)
        if epoch != self._epoch:  # kept only to save work; the result does not depend on it
            self._order = epoch_order(self.n, self.seed, epoch, self.shard_rows)
            self._epoch = epoch
        first = (step % self.steps_per_epoch) * self.global_batch
        return self._order[first:first + self.global_batch]

    def rank_slice(self, rank: int, world: int) -> slice:
        """Places in the global batch that `rank` of `world` ranks works on.

        Raises:
            UserError: the global batch cannot be shared equally.
        """
        if self.global_batch % world:
            raise UserError(f"a global batch of {self.global_batch} over {world} ranks",
                            fix=f"set train.global_batch to a multiple of {world}")
        share = self.global_batch // world
        return slice(rank * share, (rank + 1) * share)
