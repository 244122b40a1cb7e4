"""Torch datasets over a shard set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from more.data.labels import OUTSIDE, Labels
from more.data.ring import BatchRing
from more.data.sampler import SampleKey
from more.data.shards.reader import ShardSet
from more.data.store import TokenStore
from more.data.transforms import (
    MEAN,
    STD,
    TrainTransform,
    View,
    inference_image,
    labels_of_view,
    sample_generator,
    thinned,
)


@dataclass(frozen=True)
class Masks:
    """Labels for views of images.

    Attributes:
        labels: of the images. stride: one label for so many pixels in each direction.
    """

    labels: Labels
    stride: int = 1

    def of_view(self, index: int, view: View, size: int) -> np.ndarray:
        """uint8 `[s, s, 2]` for a view of `size` pixels."""
        labels = labels_of_view(self.labels[index], view.window, view.box, size, OUTSIDE)
        return thinned(labels, self.stride)


class TrainDataset(Dataset):
    """Random views of images with their tags.

    Args:
        shards: a set of kind "images".
        transform: how to make a view.
        seed: seed of the run; a view depends on (seed, epoch, index) alone.
        ring: shared memory for the pixels; None returns them with the sample.
        masks: labels that come along with every view; None: tags only.
        views: epoch e shows view e % views of an image; 0: each epoch shows another.
        store: tokens of these views, which come along as well.
    """

    def __init__(self, shards: ShardSet, transform: TrainTransform, seed: int,
                 ring: BatchRing | None = None, masks: Masks | None = None, views: int = 0,
                 store: TokenStore | None = None):
        self.shards, self.transform, self.seed, self.ring = shards, transform, seed, ring
        self.masks, self.views, self.store = masks, views, store

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample: images uint8 `[S,S,3]` (unless left in the ring), jitter float32 `[13]`,
        box int64 `[4]`, window float64 `[5]` (see `View`), tags float32 `[C]`, indices, slots as
        int; with masks labels uint8 `[s,s,2]` as well, see `Labels`; with a store tokens
        float16."""
        epoch = key.epoch % self.views if self.views else key.epoch
        rng = sample_generator(self.seed, epoch, key.index)
        out = None if self.ring is None else self.ring.place(key.parcel, key.place)
        view = self.transform(self.shards.image(key.index), rng, out)
        sample = {"tags": self.shards.tags[key.index].astype(np.float32), "jitter": view.jitter,
                  "box": view.box, "window": view.window, "indices": key.index, "slots": key.slot}
        if self.masks is not None:
            sample["labels"] = self.masks.of_view(key.index, view, self.transform.size)
        if self.store is not None:
            sample["tokens"], _ = self.store.read(epoch * len(self) + key.index)
        if self.ring is None:
            return {**sample, "images": torch.from_numpy(np.ascontiguousarray(view.pixels))}
        return {**sample, "parcel": key.parcel}


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
                "tags": self.shards.tags[index].astype(np.float32), "indices": index,
                "sizes": self.shards.sizes[index].astype(np.int64),
                "masks": None if mask is None else torch.from_numpy(mask)}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and arrays, integers into int64 arrays; `masks` stay a list (sizes differ)."""
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if key == "masks":
            batch[key] = values
        else:
            batch[key] = torch.stack(values) if torch.is_tensor(first) else np.array(values)
    return batch
