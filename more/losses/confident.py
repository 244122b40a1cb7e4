"""Confident-region term (CRE): a class token is drawn to its confident patches (§4.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from more.losses.precision import Reduce, counts, full

FLOOR = 1e-4  # stands beside the sum over patches and beside every count
UNDERFLOW = -150 * math.log(2)  # exp of anything below is 0 in float32


def confident_region_loss(
    graph_tokens: Tensor,
    patch_tokens: Tensor,
    mask: Tensor,
    tags: Tensor,
    temperature: float,
    similarity: str = "dot",
    reduction: str = "released",
    reduce: Reduce | None = None,
    share: float = 1.0,
) -> Tensor:
    """Contrast of a class's confident patches against all patches of the image.

    `ℓ_p = -log(s_p / (Σ s + 1e-4))`, `s = exp(n·f / temperature)`, for the patches whose mask
    value is the class. Computed as a log-softmax with one extra logit ln 1e-4, so that large
    features stay finite where the plain form overflows.

    Args:
        graph_tokens: `[B, C, D]`, taken as unit vectors n. patch_tokens: `[B, D, h, w]`, no
            gradient reaches them. mask: `[B, h, w]`, class k as k+1. tags: `[B, C]`.
        similarity: "dot" (unit token, raw patch) or "cosine" (both unit; paper).
        reduction: "released" (mean per class with +1e-4 in the count, sum over classes, mean over
            images) or "pairs" (mean over all positive pairs; paper).
        reduce, share: for "pairs" over several ranks, see `patch_contrast_loss`.

    Returns: a scalar, 0 with zero gradient where nothing is confident.
    """
    losses = _patch_losses(graph_tokens, patch_tokens, temperature, similarity)
    classes = torch.arange(1, tags.shape[1] + 1, device=mask.device)[:, None]
    positive = (mask.flatten(1)[:, None] == classes) & (tags > 0)[:, :, None]
    kept = torch.where(positive, losses, 0.0)
    if reduction == "pairs":
        (pairs,) = counts([positive.sum().to(losses.dtype)], reduce)
        return kept.sum() / (pairs + FLOOR * share)
    if reduction != "released":
        raise ValueError(f"CRE reduction is 'released' or 'pairs', not {reduction!r}")
    per_class = kept.sum(dim=-1) / (positive.sum(dim=-1) + FLOOR)
    return per_class.sum(dim=1).mean()


def _patch_losses(tokens: Tensor, patches: Tensor, temperature: float, similarity: str) -> Tensor:
    """`ℓ` of every class and patch, `[B, C, N]`."""
    patches = full(patches.detach()).flatten(2)
    tokens = F.normalize(full(tokens), dim=-1, eps=1e-8)
    if similarity == "cosine":
        patches = F.normalize(patches, dim=1, eps=1e-8)
    elif similarity != "dot":
        raise ValueError(f"CRE similarity is 'dot' or 'cosine', not {similarity!r}")
    logits = tokens @ patches / temperature
    floor = logits.new_full((*logits.shape[:2], 1), math.log(FLOOR))
    total = torch.cat([logits, floor], dim=-1).logsumexp(dim=-1, keepdim=True)
    # Where every exp underflows, the released code uses the constant -log(1 / (1 + 1e-4)).
    dead = logits.amax(dim=-1, keepdim=True) < UNDERFLOW
    return torch.where(dead, math.log1p(FLOOR), total - logits)
