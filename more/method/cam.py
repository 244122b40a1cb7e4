"""Class maps over several scales, and those of an image's own classes alone (method §4.4).

Labels are made from the maps of present classes only, which are few of all. B batch, C classes,
K most present classes of an image, D channels, H×W pixels, h×w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from more.tensors import upload


@dataclass(frozen=True, eq=False)
class Present:
    """Which classes a batch's images have, as a padded list.

    K, the most classes of an image, sets sizes of tensors: to learn it from tags on a GPU, the CPU
    has to wait. Made from tags on the CPU, where a loader leaves them, and then moved with `to`,
    it costs no wait.

    Attributes:
        classes: `[B, K]` class numbers from 0, as of `present_classes`.
        valid: `[B, K]` bool, false for padding.
        counts: how many classes each image has.
    """

    classes: Tensor
    valid: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, tags: Tensor | Present) -> Present:
        """The classes of tags `[B, C]` (waits for tags on a GPU); a `Present` as it is."""
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

    Args:
        tags: `[B, C]`, non-zero where the class is present.

    Returns:
        Classes `[B, K]` int64 and valid `[B, K]` bool, with K the largest number of classes in one
        image, at least 1; padding names absent classes and is marked not valid.
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

        Args:
            maps: of all classes, or of the present ones.
            tags: `[B, C]`, non-zero where the class is present, or what they say; not looked at
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


Maps = tuple[Tensor, ...]
Found = tuple[Tensor, ...] | tuple[PresentMaps, ...]
AnyMaps = TypeVar("AnyMaps", Tensor, PresentMaps)


def resize(x: AnyMaps, size: tuple[int, int]) -> AnyMaps:
    """Bilinear resize of `[B, C, h, w]` to `size` (height, width), corners not aligned."""
    if isinstance(x, PresentMaps):
        return replace(x, maps=resize(x.maps, size))
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def minmax(maps: Tensor) -> Tensor:
    """Stretch every map to 0..1: minus its minimum, over (the new maximum + 1e-5).

    Args:
        maps: `[B, C, H, W]`; each has a minimum and maximum of its own.

    Returns:
        Maps of the same shape.
    """
    shifted = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + 1e-5)


def spread(maps: Tensor, features: Tensor, steps: int, temperature: float) -> Tensor:
    """Spread maps over patches of similar features: a random walk on the patches of each image.

    In every step a patch takes the mean of all patches, weighted by the softmax of their cosine
    over the temperature. Maps of whole objects, which light up some of their patches, fill up.

    Args:
        maps: `[B, C, h, w]`.
        features: `[B, D, h, w]`.
        steps: of the random walk.
        temperature: of the softmax; lower keeps to more similar patches.

    Returns:
        Maps `[B, C, h, w]`.
    """
    tokens = F.normalize(features.flatten(2).float(), dim=1)
    walk = (tokens.transpose(1, 2) @ tokens / temperature).softmax(-1).transpose(1, 2)
    flat = maps.flatten(2)
    for _ in range(steps):
        flat = flat @ walk
    return flat.unflatten(2, maps.shape[-2:])


@torch.no_grad()
def multi_scale(
    forward: Callable[[Tensor], Maps],
    images: Tensor,
    scales: Iterable[float],
    relu: tuple[bool, ...],
    first: Maps | None = None,
    normalise: bool = True,
    tags: Tensor | Present | None = None,
    multiple: int = 1,
    together: bool = False,
) -> Found:
    """Sum of maps over scales; at each scale the larger of image and mirror image (§4.4).

    Args:
        forward: images `[B', 3, H', W']` to a tuple of maps `[B', C, h', w']`. It is called once
            per scale with the images and their mirror images in one batch.
        images: `[B, 3, H, W]`.
        scales: factors; 1 comes first and always takes part, image sizes are `int(s·H)`.
        relu: for each map whether negative values are cut off (CAM: yes, LAM: no).
        first: maps `[B, C, h, w]` of the unmirrored images at scale 1, where they are known: then
            only the mirror images are run at that scale.
        normalise: apply `minmax` to the sum.
        tags: `[B, C]`, or what they say; when given, only maps of present classes are resized,
            summed and returned, as `PresentMaps`. They do not change by this.
        multiple: see `scaled_size`.
        together: `forward` is called once, with a list of the views of all scales, and returns a
            list.

    Returns:
        A tuple of maps `[B, C, H, W]`, or of `PresentMaps`, in the order of `forward`.
    """
    size = tuple(images.shape[-2:])
    chosen = None if tags is None else Present.of(tags)
    totals: list[Tensor] | None = None
    views = [(scaled_size(size, scale, multiple), first if scale == 1 else None)
             for scale in [1.0, *(s for s in scales if s != 1)]]
    if together:
        found = iter(forward([_shown(images, *view) for view in views]))
    else:  # one after another, and no name holds them: large ones live while `forward` wants them
        found = (forward(_shown(images, *view)) for view in views)
    for _, known in views:
        maps = [_larger(pair, size, cut, chosen)
                for pair, cut in zip(_pairs(next(found), known), relu, strict=True)]
        totals = maps if totals is None else [a.add_(b) for a, b in zip(totals, maps, strict=True)]
        del maps  # they would live on while the next view is run
    return _finish(totals, normalise, chosen)


@torch.no_grad()
def single_scale(
    first: Maps,
    size: tuple[int, int],
    relu: tuple[bool, ...],
    normalise: bool = True,
    tags: Tensor | Present | None = None,
) -> Found:
    """What `multi_scale` makes of the unmirrored images at scale 1 alone; nothing is run for it.

    Args:
        first: maps `[B, C, h, w]`.
        size: height and width of the images.
        relu: this and the rest as in `multi_scale`.
        normalise: see there.
        tags: see there.

    Returns:
        A tuple of maps `[B, C, H, W]`, or of `PresentMaps` where there are tags.
    """
    chosen = None if tags is None else Present.of(tags)
    maps = [_larger((m.detach(),), size, cut, chosen) for m, cut in zip(first, relu, strict=True)]
    return _finish(maps, normalise, chosen)


def _finish(totals: list[Tensor], normalise: bool, chosen: Present | None) -> Found:
    done = [minmax(total) if normalise else total for total in totals]
    if chosen is None:
        return tuple(done)
    return tuple(PresentMaps(maps.mul_(chosen.valid[:, :, None, None]), chosen.classes,
                             chosen.valid, chosen.counts) for maps in done)


def scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """Height and width of a view: `int(s·H)`, or rounded to multiples of `multiple`, at least one.

    With 1 (released) a size that is no multiple of the patch loses pixels at its right and lower
    border, and its map is stretched by as much.
    """
    if scale == 1:
        return size
    if multiple == 1:
        return int(scale * size[0]), int(scale * size[1])
    return tuple(max(multiple, round(scale * side / multiple) * multiple) for side in size)


def _shown(images: Tensor, size: tuple[int, int], first: Maps | None) -> Tensor:
    """The view of a scale: images and mirror images, or the mirror images alone.

    The latter where the maps of the unmirrored images are known (`first`).
    """
    resized = resize(images, size)
    return torch.cat([resized, resized.flip(-1)]) if first is None else resized.flip(-1)


def _pairs(made: Maps, first: Maps | None) -> list[Maps]:
    """(map of the image, map of the mirror image turned back) for every kind of map."""
    if first is None:
        plain, turned = zip(*(maps.chunk(2) for maps in made), strict=True)
    else:
        plain, turned = first, made
    # Turning the small map back before the resize equals turning the large one, and is cheaper.
    return [(a.detach(), b.flip(-1)) for a, b in zip(plain, turned, strict=True)]


def _larger(pair: Maps, size: tuple[int, int], cut: bool, chosen: Present | None) -> Tensor:
    if chosen is not None:
        index = chosen.classes[:, :, None, None]
        pair = tuple(m.gather(1, index.expand(-1, -1, *m.shape[-2:])) for m in pair)
    # A copy in float32: maps of `first` belong to the caller, and sums want the precision.
    plain, *turned = (resize(m.float() if m.dtype in _HALF else m, size) for m in pair)
    if not turned:
        return plain.relu() if cut else plain.clone()
    larger = torch.maximum(plain, turned[0])
    return larger.relu_() if cut else larger


_HALF = (torch.float16, torch.bfloat16)
