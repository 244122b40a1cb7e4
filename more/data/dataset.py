"""Torch datasets over a shard set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from more.data.sampler import SampleKey
from more.data.shards.reader import ShardSet
from more.data.transforms import MEAN, STD, TrainTransform, inference_image, sample_generator


class TrainDataset(Dataset):
    """Random views of images with their tags.

    Args:
        shards: a set of kind "images".
        transform: how to make a view.
        seed: seed of the run; a view depends on (seed, epoch, index) alone.
    """

    def __init__(self, shards: ShardSet, transform: TrainTransform, seed: int):
        self.shards, self.transform, self.seed = shards, transform, seed

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, key: SampleKey | tuple[int, int, int]) -> dict[str, Any]:
        """Sample (index, slot, epoch): images uint8 `[S,S,3]`, jitter float32 `[13]`, box int64
        `[4]` (see `View`), tags float32 `[C]`, indices and slots as int."""
        index, slot, epoch = key
        rng = sample_generator(self.seed, epoch, index)
        view = self.transform(self.shards.image(index), rng)
        tags = torch.from_numpy(self.shards.tags[index].astype(np.float32))
        return {"images": torch.from_numpy(np.ascontiguousarray(view.pixels)), "tags": tags,
                "jitter": torch.from_numpy(view.jitter), "box": torch.from_numpy(view.box),
                "indices": index, "slots": slot}


class EvalDataset(Dataset):
    """Images at inference size with what is needed to score or store their maps.

    Args:
        shards: a set of kind "images".
        size: side of the square network input in pixels.
        mean, std: of RGB in 0..255.
        masks: also decode the label maps.
    """

    def __init__(self, shards: ShardSet, size: int, mean: tuple[float, ...] = MEAN,
                 std: tuple[float, ...] = STD, masks: bool = True):
        self.shards, self.size, self.mean, self.std = shards, size, mean, std
        self.masks = masks and shards.has("mask")

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """images float32 `[3,S,S]`, tags float32 `[C]`, indices int, sizes (height, width),
        masks uint8 `[H,W]` tensor at the original size, or None."""
        image = inference_image(self.shards.image(index), self.size, self.mean, self.std)
        mask = self.shards.mask(index) if self.masks else None
        return {"images": torch.from_numpy(image),
                "tags": torch.from_numpy(self.shards.tags[index].astype(np.float32)),
                "indices": index,
                "sizes": torch.from_numpy(self.shards.sizes[index].astype(np.int64)),
                "masks": None if mask is None else torch.from_numpy(mask)}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors, make integers an int64 tensor; `masks` stay a list (sizes differ)."""
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if key == "masks":
            batch[key] = values
        elif torch.is_tensor(first):
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.tensor(values, dtype=torch.int64)
    return batch
