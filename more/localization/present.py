"""Maps of the classes of an image alone: all that labels are made from, and few of all maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from more.transfer import upload


@dataclass(frozen=True, eq=False)
class Present:
    """The classes of a batch's images, for all that is made of these alone.

    To know how many an image has at most, the CPU would have to wait for a GPU. Made of tags on the
    CPU, where a loader leaves them, and then moved, it waits for nothing.

    Attributes:
        classes: `[B, K]` class numbers from 0. valid: `[B, K]`. Both as of `present_classes`.
        counts: how many classes each image has.
    """

    classes: Tensor
    valid: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, tags: Tensor | Present) -> Present:
        """Those of tags `[B, C]`; waits for these where they are on a GPU. `Present` as it is."""
        if isinstance(tags, Present):
            return tags
        counts = tuple((tags > 0).sum(dim=1).tolist())
        return cls(*_listed(tags, widest(counts)), counts)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.counts)

    def to(self, device: torch.device) -> Present:
        """The same on a device, in one copy that nothing waits for."""
        both = upload(torch.stack([self.classes, self.valid.long()]), device)
        return replace(self, classes=both[0], valid=both[1].bool())


def widest(counts: Sequence[int]) -> int:
    """Length of the padded list for images with so many classes: at least 1."""
    return max(1, *counts)


def present_classes(tags: Tensor) -> tuple[Tensor, Tensor]:
    """Tags as a padded list of class numbers, ascending.

    Args: tags `[B, C]`, non-zero where the class is present.
    Returns: (classes `[B, K]` int64, valid `[B, K]` bool) with K the largest number of
    classes in one image, at least 1; padding names absent classes and is marked not valid.
    """
    found = Present.of(tags)
    return found.classes, found.valid


def _listed(tags: Tensor, most: int) -> tuple[Tensor, Tensor]:
    present = tags > 0
    order = torch.argsort(present.int(), dim=1, descending=True, stable=True)
    classes = order[:, :most]
    return classes, present.gather(1, classes)


def take_classes(maps: Tensor, classes: Tensor) -> Tensor:
    """A copy of the maps `[B, K, H, W]` of some classes `[B, K]` out of `[B, C, H, W]`."""
    first = torch.arange(len(maps), device=maps.device)[:, None] * maps.shape[1]
    taken = maps.flatten(0, 1).index_select(0, (classes + first).flatten())
    return taken.unflatten(0, classes.shape)


@dataclass(frozen=True, eq=False)
class PresentMaps:
    """Class maps of a batch without those of absent classes, which count as 0.

    Attributes:
        maps: `[B, K, H, W]`, 0 where not valid.
        classes: `[B, K]` class numbers from 0, as `present_classes` gives them.
        valid: `[B, K]` bool, false for padding.
        counts: how many classes each image has; None: `valid` is asked, which waits for a GPU.
    """

    maps: Tensor
    classes: Tensor
    valid: Tensor
    counts: tuple[int, ...] | None = None

    @classmethod
    def of(cls, maps: Tensor | PresentMaps, tags: Tensor | Present) -> PresentMaps:
        """A copy of the present ones out of maps `[B, C, H, W]`; `PresentMaps` as they are.

        Args: tags `[B, C]`, non-zero where the class is present, or what they say; not looked at
        for `PresentMaps`.
        """
        if isinstance(maps, PresentMaps):
            return maps
        found = Present.of(tags)
        taken = take_classes(maps, found.classes).mul_(found.valid[:, :, None, None])
        return cls(taken, found.classes, found.valid, found.counts)

    def dense(self, channels: int) -> Tensor:
        """Maps of all classes `[B, channels, H, W]`, zeros for absent ones."""
        batch, _, *size = self.maps.shape
        index = self.classes[:, :, None, None].expand_as(self.maps)
        return self.maps.new_zeros(batch, channels, *size).scatter_(1, index, self.maps)

    def numbers(self, place: Tensor) -> Tensor:
        """Places `[B, H, W]` among the K maps as label values: class number + 1."""
        return (self.classes + 1).gather(1, place.flatten(1)).view_as(place)

    def split(self, images: int) -> list[PresentMaps]:
        """Parts of at most so many images, each without needless padding."""
        counts = tuple(self.valid.sum(dim=1).tolist()) if self.counts is None else self.counts
        own = [counts[first : first + images] for first in range(0, len(counts), images)]
        parts = zip(*(x.split(images) for x in (self.maps, self.classes, self.valid)), strict=True)
        return [PresentMaps(*(x[:, : widest(some)] for x in part), some)
                for part, some in zip(parts, own, strict=True)]
