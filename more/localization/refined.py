"""Refined labels: CAMs against two background levels, sharpened by PAR (method §4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from more.constants import constant
from more.localization.maps import resize
from more.localization.par import PixelAdaptiveRefinement
from more.localization.present import PresentMaps
from more.localization.regions import IGNORE, box_mask

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
        images: `[B, 3, H, W]` in 0..1. tags: `[B, C]`.
        cams: `[B, C, H', W']` not negative, or those of present classes.
        par: the refinement; both levels run through it in one call.
        box: `[B, 4]` (y0, y1, x0, x1) in pixels of the images; outside becomes 255.

    Returns: int64 `[B, H, W]` of 0, 1..C and 255; all 0 for an image without any tag.
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
