"""Cross entropy of the decoder, background and foreground in equal parts (method §4.6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from more.localization.regions import IGNORE
from more.losses.precision import Reduce, counts, full


def balanced_cross_entropy(
    seg_logits: Tensor, labels: Tensor, reduce: Reduce | None = None, share: float = 1.0
) -> Tensor:
    """Mean of the cross entropies over background pixels and over foreground pixels.

    Each is a sum over (count + 1e-6); pixels of value 255 are left out.
    Args: seg_logits `[B, C+1, H, W]` and labels `[B, H, W]` at one size; reduce, share: as in
    `patch_contrast_loss`. Returns: a scalar, 0 with zero gradient when all is left out.
    """
    labels = labels.long()
    losses = F.cross_entropy(full(seg_logits), labels, ignore_index=IGNORE, reduction="none")
    background = (labels == 0).to(losses.dtype)
    foreground = ((labels != 0) & (labels != IGNORE)).to(losses.dtype)
    numbers = counts([background.sum(), foreground.sum()], reduce) + 1e-6 * share
    part = [(losses * mask).sum() for mask in (background, foreground)]
    return 0.5 * (part[0] / numbers[0] + part[1] / numbers[1])
