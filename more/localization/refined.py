"""Refined labels: CAMs against two background levels, sharpened by PAR (method §4.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from more.localization.maps import present_classes, resize
from more.localization.par import PixelAdaptiveRefinement
from more.localization.regions import IGNORE, box_mask

Levels = tuple[float, float]


@torch.no_grad()
def refined_label(
    images: Tensor,
    cams: Tensor,
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
        images: `[B, 3, H, W]` in 0..1. cams: `[B, C, H', W']` not negative. tags: `[B, C]`.
        par: the refinement; both levels run through it in one call.
        box: `[B, 4]` (y0, y1, x0, x1) in pixels of the images; outside becomes 255.

    Returns: int64 `[B, H, W]` of 0, 1..C and 255; all 0 for an image without any tag.
    """
    height, width = images.shape[-2:]
    half = (height // 2, width // 2)
    classes, valid = present_classes(tags)
    # Only present classes are carried along, padded to the most of any image in the batch.
    index = classes[:, :, None, None].expand(-1, -1, *cams.shape[-2:])
    strength = resize(cams.gather(1, index), half)
    masks = _both_levels(strength, valid, (high, low))
    refined = resize(par(resize(images, half), masks), (height, width))
    above, below = (_class_numbers(run, classes) for run in refined.chunk(2, dim=1))
    label = torch.where(below == 0, 0, IGNORE)
    label = torch.where(above > 0, above, label)
    if box is not None:
        label = label.masked_fill_(~box_mask(box, (height, width)), IGNORE)
    return label


def _both_levels(strength: Tensor, valid: Tensor, levels: Levels) -> Tensor:
    """Softmax over background and present classes, `[B, 2·(K+1), h, w]`.

    Padding gets minus infinity, hence probability 0, which PAR keeps at exactly 0.
    """
    strength = strength.masked_fill(~valid[:, :, None, None], float("-inf"))
    pad = (0, 0, 0, 0, 1, 0)  # one more channel in front
    return torch.cat([F.pad(strength, pad, value=level).softmax(dim=1) for level in levels], dim=1)


def _class_numbers(scores: Tensor, classes: Tensor) -> Tensor:
    """Values 0..C from scores `[B, K+1, H, W]`, background first, and classes `[B, K]`."""
    values = F.pad(classes + 1, (1, 0))
    return values.gather(1, scores.argmax(dim=1).flatten(1)).view_as(scores[:, 0])
