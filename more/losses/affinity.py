"""Patch token contrast (PTC): patches of one region alike, of two regions not (§4.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from more.localization.regions import IGNORE
from more.losses.precision import Reduce, counts, full


def patch_affinity(labels: Tensor) -> Tensor:
    """Which pairs of patches belong together.

    Args: labels `[B, h, w]` of 0, 1..C and 255. Returns: uint8 `[B, N, N]`: 1 equal labels
    (background counts as a class), 0 different, 255 where one is uncertain or both are the same.
    """
    flat = labels.flatten(1)
    affinity = (flat[:, :, None] == flat[:, None, :]).to(torch.uint8)
    unknown = flat == IGNORE
    affinity.masked_fill_(unknown[:, :, None] | unknown[:, None, :], IGNORE)
    affinity.diagonal(dim1=1, dim2=2).fill_(IGNORE)
    return affinity


def patch_contrast_loss(
    patch_tokens: Tensor, labels: Tensor, reduce: Reduce | None = None, share: float = 1.0
) -> Tensor:
    """`½(1 - Σ₁ S/(n₁+1)) + ½ Σ₀ S/(n₀+1)` with S = |cosine| of two patches.

    Args:
        patch_tokens: `[B, D, h, w]`. labels: `[B, h, w]` at the same grid.
        reduce: gives the mean over ranks of counts; with it the mean of this value over ranks is
            the loss of the global batch.
        share: part of the global batch in this call (1 / ranks), which the "+1" is scaled with.

    Returns: a scalar.
    """
    unit = F.normalize(full(patch_tokens).flatten(2), dim=1, eps=1e-8)
    similarity = (unit.transpose(1, 2) @ unit).abs()
    affinity = patch_affinity(labels)
    equal, different = ((affinity == value).to(similarity.dtype) for value in (1, 0))
    numbers = counts([equal.sum(), different.sum()], reduce) + share
    together = (similarity * equal).sum() / numbers[0]
    apart = (similarity * different).sum() / numbers[1]
    return 0.5 * (1 - together) + 0.5 * apart
