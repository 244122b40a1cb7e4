"""Confident-region term (CRE): a class token is drawn to its confident patches (§4.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.localization.present import present_classes
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
    # Only present classes count; padding of the list is excluded by `valid`.
    present, valid = present_classes(tags)
    tokens = graph_tokens.gather(1, present[..., None].expand(-1, -1, graph_tokens.shape[-1]))
    positive = (mask.flatten(1)[:, None] == (present + 1)[..., None]) & valid[..., None]
    numbers = positive.sum(dim=-1).to(torch.promote_types(tokens.dtype, torch.float32))
    if reduction == "pairs":
        (pairs,) = counts([numbers.sum()], reduce)
        factors = (1 / (pairs + FLOOR * share)).expand_as(numbers)
    elif reduction == "released":
        factors = 1 / (numbers + FLOOR) / len(tags)
    else:
        raise ValueError(f"CRE reduction is 'released' or 'pairs', not {reduction!r}")
    patches = full(patch_tokens.detach()).flatten(2)
    if similarity == "cosine":
        patches = F.normalize(patches, dim=1, eps=1e-8)
    elif similarity != "dot":
        raise ValueError(f"CRE similarity is 'dot' or 'cosine', not {similarity!r}")
    queries = F.normalize(full(tokens), dim=-1, eps=1e-8) / temperature
    gradient = torch.is_grad_enabled() and queries.requires_grad
    return _PositiveLosses.apply(queries, patches, positive, factors, gradient)


class _PositiveLosses(torch.autograd.Function):
    """`Σ factor·ℓ` over the positive pairs; value and gradient in one go over the patches."""

    @staticmethod
    def forward(ctx, queries, patches, positive, factors, gradient) -> Tensor:
        """queries `[B, K, D]`, patches `[B, D, N]`, positive `[B, K, N]`, factors `[B, K]`."""
        logits = queries @ patches
        top = logits.amax(dim=-1, keepdim=True).clamp_(min=math.log(FLOOR))
        exps = (logits - top).exp_()
        sums = exps.sum(dim=-1, keepdim=True) + FLOOR * (-top).exp()
        # Where every exp underflows, the released code uses the constant -log(1 / (1 + 1e-4)).
        dead = logits.amax(dim=-1, keepdim=True) < UNDERFLOW
        losses = torch.where(dead, math.log1p(FLOOR), sums.log() + top - logits)
        if gradient:
            number = positive.sum(dim=-1, keepdim=True)
            slope = (exps * (number / sums) - positive.to(exps.dtype)) * factors[..., None]
            ctx.save_for_backward(slope.masked_fill_(dead, 0) @ patches.transpose(1, 2))
        return (losses.masked_fill_(~positive, 0).sum(dim=-1) * factors).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor, None, None, None, None]:
        """Gradient for the queries only."""
        return upstream * ctx.saved_tensors[0], None, None, None, None
