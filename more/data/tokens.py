"""Views of images as the tokens that frozen blocks make of them, for training what is above."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from more.data.labels import OUTSIDE, Labels
from more.data.sampler import SampleKey
from more.data.store import TokenStore
from more.data.transforms import labels_of_view, thinned


class TokenDataset(Dataset):
    """Views of images as tokens, with their labels.

    Args:
        store: complete.
        views: of each image; epoch e shows view e % views.
        labels: of the images.
        tags: `[n, C]`.
        size, stride: side of a view in pixels, and how many of them one label stands for.
    """

    def __init__(self, store: TokenStore, views: int, labels: Labels, tags: np.ndarray,
                 size: int, stride: int):
        self.store, self.views, self.labels, self.tags = store, views, labels, tags
        self.size, self.stride = size, stride

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """tokens float16 `[T,D]`, labels uint8 `[s,s,2]` (see `Labels`), tags float32 `[C]`,
        indices and slots as int."""
        tokens, place = self.store.read(key.epoch % self.views * len(self) + key.index)
        labels = labels_of_view(self.labels[key.index], place[:5], place[5:], self.size, OUTSIDE)
        return {"tokens": tokens, "labels": thinned(labels, self.stride),
                "tags": self.tags[key.index].astype(np.float32), "indices": key.index,
                "slots": key.slot}
