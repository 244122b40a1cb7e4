"""Torch datasets: random views for training, the same views as stored tokens, images to evaluate.

C is the number of classes, S the side of a view in pixels, s the side of its labels, T and D the
number and the width of an image's tokens, H and W the height and width of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from more.data.batch_order import SampleKey
from more.data.loader_processes import BatchRing
from more.data.mask_labels import OUTSIDE, Labels
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore
from more.data.transforms import (
    TrainTransform,
    View,
    inference_image,
    labels_of_view,
    sample_generator,
    thinned,
)
from more.tensors import MEAN, STD


@dataclass(frozen=True)
class Masks:
    """Makes the labels of a view.

    Attributes:
        labels: of the images.
        stride: pixels of the view, in each direction, that share one label.
    """

    labels: Labels
    stride: int = 1

    def of_view(self, index: int, view: View, size: int) -> np.ndarray:
        """Labels of one view.

        Args:
            index: number of the image.
            view: which part of the image it shows.
            size: side of the view in pixels.

        Returns:
            uint8 `[s, s, 2]`, see `Labels`.
        """
        labels = labels_of_view(self.labels[index], view.window, view.box, size, OUTSIDE)
        return thinned(labels, self.stride)


class TrainDataset(Dataset):
    """Random views of images with their tags.

    Args:
        shards: a set of kind "images".
        transform: how to make a view.
        seed: seed of the run; a view depends on (seed, epoch, index) alone.
        ring: shared memory for the pixels; None returns them with the sample.
        masks: makes the labels that a sample then holds as well; None: tags only.
        views: number of different views of an image: epoch e shows view e % views; 0 makes a new
            one in each epoch.
        store: tokens of these views, which a sample then holds as well.
    """

    def __init__(self, shards: ShardSet, transform: TrainTransform, seed: int,
                 ring: BatchRing | None = None, masks: Masks | None = None, views: int = 0,
                 store: TokenStore | None = None):
        self.shards, self.transform, self.seed, self.ring = shards, transform, seed, ring
        self.masks, self.views, self.store = masks, views, store

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Load one sample.

        Args:
            key: which image, in which epoch.

        Returns:
            images uint8 `[S, S, 3]` (with a ring they are left there, and chunk is the number of
            the chunk), jitter float32 `[13]`, box int64 `[4]`, window float64 `[5]` (see `View`),
            tags float32 `[C]`, indices and slots as int. With masks also labels uint8
            `[s, s, 2]` (see `Labels`), with a store also tokens float16.
        """
        epoch = key.epoch % self.views if self.views else key.epoch
        rng = sample_generator(self.seed, epoch, key.index)
        out = None if self.ring is None else self.ring.place(key.chunk, key.place)
        view = self.transform(self.shards.image(key.index), rng, out)
        sample = {"tags": self.shards.tags[key.index].astype(np.float32), "jitter": view.jitter,
                  "box": view.box, "window": view.window, "indices": key.index, "slots": key.slot}
        if self.masks is not None:
            sample["labels"] = self.masks.of_view(key.index, view, self.transform.size)
        if self.store is not None:
            sample["tokens"], _ = self.store.read(epoch * len(self) + key.index)
        if self.ring is None:
            return {**sample, "images": torch.from_numpy(np.ascontiguousarray(view.pixels))}
        return {**sample, "chunk": key.chunk}


class TokenDataset(Dataset):
    """Views of images as the tokens that frozen blocks make of them, with their labels.

    Args:
        store: a complete store.
        views: number of views of each image; epoch e shows view e % views.
        labels: of the images.
        tags: `[n, C]` of the n images.
        size: side of a view in pixels.
        stride: pixels of the view, in each direction, that share one label.
    """

    def __init__(self, store: TokenStore, views: int, labels: Labels, tags: np.ndarray,
                 size: int, stride: int):
        self.store, self.views, self.labels, self.tags = store, views, labels, tags
        self.size, self.stride = size, stride

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Load one sample.

        Args:
            key: which image, in which epoch.

        Returns:
            tokens float16 `[T, D]`, labels uint8 `[s, s, 2]` (see `Labels`), tags float32 `[C]`,
            indices and slots as int.
        """
        tokens, place = self.store.read(key.epoch % self.views * len(self) + key.index)
        labels = labels_of_view(self.labels[key.index], place[:5], place[5:], self.size, OUTSIDE)
        return {"tokens": tokens, "labels": thinned(labels, self.stride),
                "tags": self.tags[key.index].astype(np.float32), "indices": key.index,
                "slots": key.slot}


class EvalDataset(Dataset):
    """Images at inference size with what is needed to score or store their maps.

    Args:
        shards: a set of kind "images".
        size: side of the square network input in pixels.
        mean: of RGB in 0..255.
        std: of RGB in 0..255.
        masks: also decode the true label maps.
    """

    def __init__(self, shards: ShardSet, size: int, mean: tuple[float, ...] = MEAN,
                 std: tuple[float, ...] = STD, masks: bool = True):
        self.shards, self.size, self.mean, self.std = shards, size, mean, std
        self.masks = masks and shards.has("mask")

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one image.

        Args:
            index: row of the set.

        Returns:
            images float32 `[3, S, S]`, tags float32 `[C]`, indices int, sizes (height, width),
            masks a uint8 tensor `[H, W]` at the original size, or None.
        """
        image = inference_image(self.shards.image(index), self.size, self.mean, self.std)
        mask = self.shards.mask(index) if self.masks else None
        return {"images": torch.from_numpy(image),
                "tags": self.shards.tags[index].astype(np.float32), "indices": index,
                "sizes": self.shards.sizes[index].astype(np.int64),
                "masks": None if mask is None else torch.from_numpy(mask)}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of samples.

    Args:
        samples: dictionaries with the same keys.

    Returns:
        By key: tensors and arrays stacked, integers as an int64 array; `masks` stay a list, since
        their sizes differ.
    """
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if key == "masks":
            batch[key] = values
        else:
            batch[key] = torch.stack(values) if torch.is_tensor(first) else np.array(values)
    return batch
