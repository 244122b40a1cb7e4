"""Term `cre`, confident regions: a class token moves to its confident patches (method §4.6).

B batch, C classes, K present classes (padded), D channels, h×w = N patches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.method.cam import Present
from more.tensors import EPS, Reduce, counts, full

FLOOR = 1e-4  # stands beside the sum over patches and beside every count
UNDERFLOW = -150 * math.log(2)  # exp of anything below is 0 in float32


def confident_region_loss(
    graph_tokens: Tensor, patch_tokens: Tensor, mask: Tensor, tags: Tensor | Present,
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
        graph_tokens: `[B, C, D]`, taken as unit vectors n.
        patch_tokens: `[B, D, h, w]`, no gradient reaches them.
        mask: `[B, h, w]`, class k as k+1.
        tags: `[B, C]`, or what they say.
        temperature: of the softmax.
        similarity: "dot" (unit token, raw patch) or "cosine" (both unit; paper).
        reduction: "released" (mean per class with +1e-4 in the count, sum over classes, mean over
            images) or "pairs" (mean over all positive pairs; paper).
        reduce: for "pairs" over several ranks, see `patch_contrast_loss`.
        share: likewise.

    Returns:
        A scalar, 0 with zero gradient where nothing is confident.

    Raises:
        ValueError: unknown similarity or reduction.
    """
    present, positive = _positive(mask, tags)
    positive = positive.to(torch.promote_types(graph_tokens.dtype, torch.float32))
    numbers = positive.sum(dim=-1)
    factors = _factors(numbers, reduction, reduce, share)
    patches = full(patch_tokens.detach()).flatten(2)
    if similarity == "cosine":
        patches = F.normalize(patches, dim=1, eps=EPS)
    elif similarity != "dot":
        raise ValueError(f"CRE similarity is 'dot' or 'cosine', not {similarity!r}")
    gradient = torch.is_grad_enabled() and graph_tokens.requires_grad
    return _PositiveLosses.apply(graph_tokens, present, patches, positive, numbers, factors,
                                 temperature, gradient)


def _factors(numbers: Tensor, reduction: str, reduce: Reduce | None, share: float) -> Tensor:
    """What a pair counts in the loss, by image and class `[B, K]` as their numbers of pairs."""
    if reduction == "pairs":
        (pairs,) = counts(lambda: [numbers.sum()], reduce)
        return (1 / (pairs + FLOOR * share)).expand_as(numbers)
    if reduction == "released":
        return 1 / ((numbers + FLOOR) * len(numbers))
    raise ValueError(f"CRE reduction is 'released' or 'pairs', not {reduction!r}")


def positive_pairs(mask: Tensor, tags: Tensor | Present) -> Tensor:
    """Number of pairs of a present class and a patch that is confident of it."""
    return _positive(mask, tags)[1].sum()


def _positive(mask: Tensor, tags: Tensor | Present) -> tuple[Tensor, Tensor]:
    """Present classes `[B, K]`, and which patches are confident of them `[B, K, N]`."""
    found = Present.of(tags)  # padding of the list is excluded by `valid`
    positive = mask.flatten(1)[:, None] == (found.classes + 1)[..., None]
    return found.classes, positive.logical_and_(found.valid[..., None])


class _PositiveLosses(torch.autograd.Function):
    """`Σ factor·ℓ` over the positive pairs; value and gradient in one go over the patches."""

    @staticmethod
    def forward(ctx, tokens, present, patches, positive, numbers, factors, temperature, gradient
                ) -> Tensor:
        """The sum.

        tokens `[B, C, D]`, patches `[B, D, N]`, positive `[B, K, N]` of 0 and 1, present, numbers
        and factors `[B, K]`. With `S = Σ s + 1e-4`, Σ ℓ over n positive patches is
        `n·ln S - Σ_positive logit`.
        """
        index = present[..., None].expand(-1, -1, tokens.shape[-1])
        chosen = full(tokens.gather(1, index))
        lengths = torch.linalg.vector_norm(chosen, dim=-1, keepdim=True).clamp_(min=EPS)
        units = chosen.div_(lengths)
        logits = (units / temperature) @ patches
        most = logits.amax(dim=-1, keepdim=True)
        top = most.clamp(min=math.log(FLOOR))
        logits = logits.sub_(top)
        exps = logits.exp()
        sums = exps.sum(dim=-1, keepdim=True) + FLOOR * (-top).exp()
        # Where every exp underflows, the released code uses the constant -log(1 / (1 + 1e-4)).
        dead = most < UNDERFLOW
        losses = numbers * sums.log()[..., 0] - (positive * logits).sum(dim=-1)
        losses = torch.where(dead[..., 0], numbers * math.log1p(FLOOR), losses)
        if gradient:
            slope = exps.mul_(numbers[..., None] / sums).sub_(positive)
            slope *= factors.masked_fill(dead[..., 0], 0)[..., None]
            pull = slope @ patches.transpose(1, 2)
            # Of u = t/|t|: du/dt = (1 - u·uᵀ)/|t|, and 1/eps alone where F.normalize takes eps.
            along = (units * pull).sum(dim=-1, keepdim=True).masked_fill_(lengths <= EPS, 0)
            pull = pull.sub_(along * units).div_(lengths * temperature)
            ctx.save_for_backward(present, pull)
            ctx.size, ctx.dtype = tokens.shape, tokens.dtype
        return (losses * factors).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor | None, ...]:
        """Gradient for the tokens only."""
        present, pull = ctx.saved_tensors
        tokens = pull.new_zeros(ctx.size, dtype=ctx.dtype)
        # Upstream first: without a loss scale small numbers would be 0 in fp16.
        parts = (pull * upstream).to(ctx.dtype)
        tokens.scatter_(1, present[..., None].expand_as(parts), parts)
        return tokens, *[None] * 7
