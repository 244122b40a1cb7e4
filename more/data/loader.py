"""Batches for training and inference: DataLoaders whose order is fixed beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from more.data.dataset import EvalDataset, TrainDataset, collate
from more.data.plan import GlobalBatchSampler
from more.data.sampler import MicroBatches
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform
from more.errors import UserError


class Batches:
    """Iterates over a DataLoader; a user error inside a worker arrives here as it was raised.

    (A DataLoader by itself wraps it into the worker's traceback.)

    Attributes:
        loader: the DataLoader. sampler: its batch sampler; `accumulation` for training.
    """

    def __init__(self, loader: DataLoader, sampler: Any):
        self.loader, self.sampler = loader, sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            if isinstance(batch, _Failure):
                raise UserError(batch.message, batch.fix)
            yield batch


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
    """A user error on its way through a queue."""

    def __init__(self, message: str, fix: str | None):
        self.message, self.fix = message, fix


def _collate(samples: Sequence[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate(samples)


def start_worker(_: int) -> None:
    """Keep OpenCV from starting its own threads in a loader process."""
    cv2.setNumThreads(0)


@dataclass(frozen=True)
class Reading:
    """How a training loader reads; none of it changes a single sample.

    Attributes:
        workers: loader processes; 0 loads in this process.
        prefetch_mb: megabytes of finished micro-batches that may wait, per rank.
        context: how loader processes start: "fork", "spawn" or "forkserver".
    """

    workers: int = 0
    prefetch_mb: int = 256
    context: str = "fork"


def make_train_loader(shards: ShardSet, transform: TrainTransform, plan: GlobalBatchSampler, *,
                      rank: int = 0, world: int = 1, micro_batch: int | None = None,
                      start_step: int = 0, stop_step: int | None = None,
                      reading: Reading | None = None) -> Batches:
    """The micro-batches of one rank, from global step `start_step` on.

    A batch is a dict: images uint8 `[b,S,S,3]`, jitter float32 `[b,13]` and box int64 `[b,4]`
    (`more.data.colours.prepare` makes network input of these), tags float32 `[b,C]`, indices and
    slots int64 `[b]` (row of the set, place in the global batch).
    `batches.sampler.accumulation` micro-batches make one global step. The same samples in the
    same order, whatever rank count, micro-batch and number of workers.

    Args:
        shards: a set of kind "images".
        transform: random view.
        plan: which samples make up which global step.
        rank, world: this process and their number.
        micro_batch: images per forward pass; None = the rank's whole share.
        start_step: global step to start or resume at.
        stop_step: end (exclusive); None never ends.
        reading: processes and memory.

    Raises:
        UserError: batch sizes that do not divide, or a damaged image.
    """
    reading = reading or Reading()
    sampler = MicroBatches(plan, rank, world, micro_batch, start_step, stop_step)
    dataset = TrainDataset(shards, transform, plan.seed)
    batch_bytes = sampler.micro_batch * (transform.size ** 2 * 3 + shards.num_classes * 4)
    ahead = prefetch_factor(reading, sampler.accumulation, batch_bytes)
    return _batches(dataset, sampler, reading.workers, reading.context, ahead)


def prefetch_factor(reading: Reading, accumulation: int, batch_bytes: int) -> int:
    """Micro-batches that each worker prepares ahead: enough for two global steps, or as many as
    `prefetch_mb` holds; never less than one."""
    workers = max(reading.workers, 1)
    wanted = -(-2 * accumulation // workers)
    return max(1, min(max(wanted, 2), reading.prefetch_mb * 2**20 // batch_bytes // workers))


def make_eval_loader(shards: ShardSet, size: int, *, batch_size: int = 1, rank: int = 0,
                     world: int = 1, workers: int = 0, masks: bool = True,
                     indices: Sequence[int] | None = None, mean: tuple[float, ...] | None = None,
                     std: tuple[float, ...] | None = None, context: str = "fork") -> Batches:
    """Every image once over all ranks: rank r takes rows r, r + world, …; nothing is repeated.

    A batch is a dict: images `[b,3,S,S]`, tags `[b,C]`, indices `[b]`, sizes `[b,2]` (height,
    width), masks: list of uint8 `[H,W]` tensors or None.

    Args:
        indices: rows to take instead of all (before they are shared out).
        mean, std: of RGB in 0..255; None = ImageNet's.
        Others as in `make_train_loader`.
    """
    rows = list(range(len(shards)) if indices is None else indices)[rank::world]
    sampler = [rows[first:first + batch_size] for first in range(0, len(rows), batch_size)]
    options = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    dataset = EvalDataset(shards, size, masks=masks, **options)
    return _batches(dataset, sampler, workers, context)


def _batches(dataset: Dataset, sampler: Any, workers: int, context: str,
             ahead: int | None = None) -> Batches:
    loader = DataLoader(_Guarded(dataset), batch_sampler=sampler, num_workers=workers,
                        collate_fn=_collate, worker_init_fn=start_worker if workers else None,
                        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
                        prefetch_factor=(ahead or 2) if workers else None,
                        multiprocessing_context=context if workers else None)
    return Batches(loader, sampler)
