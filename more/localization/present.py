"""Maps of the classes of an image alone: all that labels are made from, and few of all maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def present_classes(tags: Tensor) -> tuple[Tensor, Tensor]:
    """Tags as a padded list of class numbers, ascending.

    Args: tags `[B, C]`, non-zero where the class is present.
    Returns: (classes `[B, K]` int64, valid `[B, K]` bool) with K the largest number of
    classes in one image, at least 1; padding names absent classes and is marked not valid.
    """
    present = tags > 0
    order = torch.argsort(present.int(), dim=1, descending=True, stable=True)
    most = max(1, int(present.sum(dim=1).max()))
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
    """

    maps: Tensor
    classes: Tensor
    valid: Tensor

    @classmethod
    def of(cls, maps: Tensor | PresentMaps, tags: Tensor) -> PresentMaps:
        """A copy of the present ones out of maps `[B, C, H, W]`; `PresentMaps` as they are.

        Args: tags `[B, C]`, non-zero where the class is present; not looked at for `PresentMaps`.
        """
        if isinstance(maps, PresentMaps):
            return maps
        classes, valid = present_classes(tags)
        return cls(take_classes(maps, classes).mul_(valid[:, :, None, None]), classes, valid)

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
        parts = zip(*(x.split(images) for x in (self.maps, self.classes, self.valid)), strict=True)
        return [PresentMaps(*(x[:, : max(1, int(part[2].sum(dim=1).max()))] for x in part))
                for part in parts]
