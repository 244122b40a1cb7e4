"""Cross entropy of the decoder, background and foreground in equal parts (method §4.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from more.localization.regions import IGNORE
from more.losses.enlarge import enlarge
from more.losses.precision import Reduce, counts, full


def balanced_cross_entropy(
    seg_logits: Tensor, labels: Tensor, reduce: Reduce | None = None, share: float = 1.0
) -> Tensor:
    """Mean of the cross entropies over background pixels and over foreground pixels.

    Each is a sum over (count + 1e-6); pixels of value 255 are left out.
    Args: seg_logits `[B, C+1, h, w]`, resized to the size of the labels `[B, H, W]`; reduce,
    share: as in `patch_contrast_loss`. Returns: a scalar, 0 with zero gradient when all is left
    out.
    """
    numbers = pixel_counts(labels, full(seg_logits).dtype, reduce, share)
    return balanced_sum(seg_logits, labels, numbers)


def pixel_counts(
    labels: Tensor, dtype: torch.dtype, reduce: Reduce | None = None, share: float = 1.0
) -> Tensor:
    """Numbers `[2]` of background and foreground pixels, averaged over ranks, plus 1e-6."""
    return counts([mask.sum() for mask in _kinds(labels, dtype)], reduce) + 1e-6 * share


def balanced_sum(seg_logits: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
    """What some images add to `balanced_cross_entropy`; numbers: of the batch they belong to."""
    logits = enlarge(full(seg_logits), tuple(labels.shape[-2:]))
    losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")
    part = [(losses * mask).sum() for mask in _kinds(labels, losses.dtype)]
    return 0.5 * (part[0] / numbers[0] + part[1] / numbers[1])


def _kinds(labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ones at background pixels; ones at foreground pixels."""
    background, foreground = labels == 0, (labels != 0) & (labels != IGNORE)
    return background.to(dtype), foreground.to(dtype)
