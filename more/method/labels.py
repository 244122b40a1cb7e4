"""What the loss terms learn from: a batch, and the labels that its maps give (method §4.5).

Labels of pixels are made from maps by thresholds, or refined by PAR.

Labels are 0 background, 1..C classes, 255 uncertain. B batch, C classes, K most present classes of
an image, H×W pixels, h×w patches; in `refined_label` h×w half of the pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from more.method.cam import Present, PresentMaps, resize
from more.method.par import PixelAdaptiveRefinement
from more.tensors import MEAN, STD, Reduce, box_mask, constant

IGNORE = 255
SMALL = 2**16  # values of an image's maps below which picking the present ones costs more


@dataclass
class Batch:
    """What the losses need besides the network's output."""

    images: Tensor
    """`[B, 3, H, W]` normalised, float32."""
    tags: Tensor
    """`[B, C]` zeros and ones."""
    cams: Tensor | PresentMaps | None
    """Multi-scale CAMs in 0..1, those of present classes or all `[B, C, H, W]`; None where
    `needs_cams` is false: the terms that are made from CAMs are then left out."""
    aux_cams: Tensor | PresentMaps | None
    """Likewise of the auxiliary classifier."""
    box: Tensor | None = None
    """`[B, 4]` (y0, y1, x0, x1) of the real image inside its padding, pixels."""
    keys: Tensor | None = None
    """`[B, 2, h·w]` uniform numbers for URE's choices; None: torch's default generator."""
    count_reduce: Reduce | None = None
    """Mean over ranks of a tensor of counts; None: one rank. Asked once a pass, for all terms."""
    share: float = 1.0
    """Part of the global batch in this one: 1 / (ranks × passes an update)."""
    mean: Sequence[float] = MEAN
    """Of the normalisation, scale 0..255."""
    std: Sequence[float] = STD
    """Of the normalisation, scale 0..255."""
    lams: Tensor | None = None
    """`[B, C, H, W]` LAMs in 0..1 for decoder labels from LAM; None: made from the output."""
    present: Present | None = None
    """What the tags say, where that is known; else terms find it out, and wait for a GPU."""

    @property
    def shown(self) -> Tensor | Present:
        """The tags, for what only asks which classes an image has."""
        return self.tags if self.present is None else self.present


class Labels(NamedTuple):
    """All that an update's terms learn from besides tags; made without gradient."""

    masks: Masks
    places: tuple[Tensor, Tensor] | None
    """URE's patches and which of them count, see `select_uncertain`."""
    pixels: Tensor | None
    """The decoder's labels `[B, H, W]`."""


class Masks(NamedTuple):
    """Labels of patches, each `[B, h, w]`."""

    contrast: Tensor
    confident: Tensor
    uncertain: Tensor


# Label maps.


def mask_cams(cams: Tensor, tags: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` with those of absent classes (tags `[B, C]` zero) set to 0."""
    return cams * tags[:, :, None, None].to(cams.dtype)


def scale_box(box: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """A box `[B, 4]` in pixels of `size` as one in cells of `new_size`, whole cells only.

    Rounded inwards, so that no cell inside the new box touches a pixel outside the old one.
    """
    (height, width), (rows, columns) = size, new_size
    new = constant((rows, rows, columns, columns), box)
    old = constant((height, height, width, width), box)
    up = constant((height - 1, 0, width - 1, 0), box)  # the first cell is rounded up
    return (box * new + up) // old


@torch.no_grad()
def cam_to_label(
    cams: Tensor | PresentMaps,
    tags: Tensor,
    high: float | None = None,
    low: float | None = None,
    background: float | None = None,
    ignore_middle: bool = True,
    box: Tensor | None = None,
) -> Tensor:
    """Label map from class maps: the strongest present class against thresholds (§4.5).

    Args:
        cams: `[B, C, H, W]`, or those of present classes.
        tags: `[B, C]`, zeros and ones; absent classes count as 0.
        high: with `ignore_middle`, values up to it (included) are uncertain (255).
        low: with `ignore_middle`, values up to it (included) are background; `background` is then
            not looked at.
        background: without `ignore_middle`, values up to it are background.
        box: `[B, 4]` (y0, y1, x0, x1) in cells of the maps; outside becomes 255.

    Returns:
        int64 `[B, H, W]`. Equal values go to the first class.

    Raises:
        ValueError: the thresholds that the mode needs are missing.
    """
    if ignore_middle and (high is None or low is None):
        raise ValueError("cam_to_label with ignore_middle needs the thresholds high and low")
    if not ignore_middle and background is None:
        raise ValueError("cam_to_label without ignore_middle needs the background threshold")
    top, label = _strongest(cams, tags, low if ignore_middle else background)
    if ignore_middle:
        label = label.masked_fill_(top <= high, IGNORE).masked_fill_(top <= low, 0)
    else:
        label = label.masked_fill_(top <= background, 0)
    if box is not None:
        label = label.masked_fill_(~box_mask(box, tuple(label.shape[-2:])), IGNORE)
    return label


def _strongest(cams: Tensor | PresentMaps, tags: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Largest value and its class number `[B, H, W]`; absent classes count as 0.

    Values up to `floor` become background anyway. Where that includes 0 and the maps are large,
    absent classes are never looked at: they could only win with a value of 0.
    """
    if floor < 0 and isinstance(cams, PresentMaps):
        cams = cams.dense(tags.shape[1])
    if isinstance(cams, Tensor) and (floor < 0 or cams[0].numel() < SMALL):
        top, label = mask_cams(cams, tags).max(dim=1)
        return top, label + 1
    present = PresentMaps.of(cams, tags)
    top, place = present.maps.max(dim=1)
    return top, present.numbers(place)


def undo_normalisation(
    images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Tensor:
    """Normalised images `[B, 3, H, W]` back on the scale 0..255, not rounded."""
    shift, factor = (constant(v, images).view(-1, 1, 1) for v in (mean, std))
    return images * factor + shift


def denormalise(
    images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Tensor:
    """Normalised images `[B, 3, H, W]` back to 0..1 as PAR sees them.

    The 0..255 values are truncated to whole levels, as the released code does; rounding noise
    can so lower a value that came from an 8-bit pixel by one level.
    """
    return undo_normalisation(images, mean, std).trunc_().clamp_(0, 255).div_(255.0)


Levels = tuple[float, float]
PIXELS = {"cpu": 2**14, "cuda": 2**21}  # refined at a time; an image is never divided


@torch.no_grad()
def refined_label(
    images: Tensor,
    cams: Tensor | PresentMaps,
    tags: Tensor,
    high: float,
    low: float,
    par: PixelAdaptiveRefinement,
    box: Tensor | None = None,
) -> Tensor:
    """Pseudo-labels of the decoder.

    The present classes compete with a constant background of `high` and with one of `low`, at
    half size: softmax, PAR, back to full size, argmax. A class that wins against `high` is
    taken; background needs both runs; the rest is uncertain.

    Args:
        images: `[B, 3, H, W]` in 0..1.
        cams: `[B, C, H', W']` not negative, or those of present classes.
        tags: `[B, C]`, zeros and ones.
        high: upper level of the background.
        low: lower level of the background.
        par: the refinement; both levels run through it in one call.
        box: `[B, 4]` (y0, y1, x0, x1) in pixels of the images; outside becomes 255.

    Returns:
        int64 `[B, H, W]` of 0, 1..C and 255; all 0 for an image without any tag.
    """
    height, width = images.shape[-2:]
    half = (height // 2, width // 2)
    # Large images one by one on a CPU: each with its own classes, its tensors in the cache.
    limit = PIXELS.get(images.device.type, PIXELS["cuda"])
    parts = [tensor.split(max(1, limit // (half[0] * half[1]))) for tensor in (images, cams, tags)]
    label = torch.cat([_refined(*part, half, (high, low), par)
                       for part in zip(*parts, strict=True)])
    if box is not None:
        label = label.masked_fill_(~box_mask(box, (height, width)), IGNORE)
    return label


def _refined(images: Tensor, cams: Tensor | PresentMaps, tags: Tensor, half: tuple[int, int],
             levels: Levels, par: PixelAdaptiveRefinement) -> Tensor:
    """Labels `[b, H, W]` of some images."""
    present = resize(PresentMaps.of(cams, tags), half)
    masks = par(resize(images, half), _both_levels(present.maps, present.valid, levels))
    masks = resize(masks, tuple(images.shape[-2:]))
    masks = masks.unflatten(1, (2, -1))  # above and below the levels
    above, below = (par.gain - masks.sum(dim=2)).unbind(1)  # what is left for the background
    top, place = masks[:, 0].max(dim=1)
    won = above >= top  # of equal values the background's wins
    label = present.numbers(place).masked_fill_(won, IGNORE)
    return label.masked_fill_(won & (below >= masks[:, 1].amax(dim=1)), 0)


def _both_levels(strength: Tensor, valid: Tensor, levels: Levels) -> Tensor:
    """Softmax over background and present classes without the background, `[B, 2·K, h, w]`.

    The background is not carried along: it is what the others leave. Padding gets minus infinity,
    hence probability 0, which PAR keeps at exactly 0.
    """
    strength = strength.masked_fill(~valid[:, :, None, None], float("-inf"))
    batch, classes, *size = strength.shape
    background = constant(levels, strength).view(2, 1, 1, 1).expand(batch, 2, 1, *size)
    both = torch.cat([background, strength[:, None].expand(batch, 2, classes, *size)], dim=2)
    return both.softmax(dim=2)[:, :, 1:].flatten(1, 2)
