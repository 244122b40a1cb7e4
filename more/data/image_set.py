"""A shard set as a plain torch Dataset: images, tags and masks as they are, for notebooks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from more.data.shards.reader import ShardSet
from more.errors import UserError, need_path


class Item(NamedTuple):
    """One image of a set.

    Attributes:
        id: its name in the set.
        image: the picture, RGB; None in a set of masks, which holds no pictures.
        tags: names of the classes that it is tagged with.
        mask: uint8 `[H, W]`, 0 background, v the class `classes[v - 1]`, 255 without label; None
            where there is none.
    """

    id: str
    image: Image.Image | None
    tags: tuple[str, ...]
    mask: np.ndarray | None


class ImageSet(Dataset):
    """Images of a shard set by number; safe to hand to the processes of a DataLoader.

    Images differ in size: load them with `batch_size=None`, with `collate_fn=list`, or give a
    `transform` that makes them alike.

    Args:
        shards: a set of images or of masks.
        transform: called with each `Item`; what it returns is what the set gives.

    Attributes:
        classes: names of the C classes.
        ids: names of the images.
        tags: uint8 `[N, C]`, of all images at once.
    """

    def __init__(self, shards: ShardSet, transform: Callable[[Item], Any] | None = None):
        self.shards, self.transform = shards, transform
        self.classes, self.ids, self.tags = tuple(shards.class_names), shards.ids, shards.tags

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Any:
        """Image number `index`; negative numbers count from the end.

        Args:
            index: from -N to N - 1.

        Returns:
            An `Item`, or what `transform` makes of it.

        Raises:
            IndexError: there is no such image.
            UserError: the shard is damaged.
        """
        row = range(len(self))[index]
        image = Image.fromarray(self.shards.image(row)) if self.shards.kind == "images" else None
        tags = tuple(self.classes[k] for k in np.flatnonzero(self.tags[row]))
        item = Item(self.ids[row], image, tags, self.shards.mask(row))
        return item if self.transform is None else self.transform(item)

    def __repr__(self) -> str:
        return f"ImageSet({self.shards.path}: {len(self)} {self.shards.kind}, " \
               f"{len(self.classes)} classes)"


def open_set(folder: str | os.PathLike[str],
             transform: Callable[[Item], Any] | None = None) -> ImageSet:
    """Open a shard set: one of `data_tools` (images), or of `more refine` (masks).

    Args:
        folder: with `manifest.json`.
        transform: see `ImageSet`.

    Returns:
        The set.

    Raises:
        UserError: no such folder, no shard set, or one of seeds.
    """
    path = Path(folder)
    need_path(path, fix="give the folder of a shard set; data_tools makes it, as in "
                        "`python -m data_tools.folder PICTURES data/mine --tags tags.csv`",
              folder=True)
    shards = ShardSet(path)
    if shards.kind == "seeds":
        raise UserError(f"{path}: holds seeds, not images or masks",
                        fix="open the images, or the masks that `more refine` makes of the seeds")
    return ImageSet(shards, transform)
