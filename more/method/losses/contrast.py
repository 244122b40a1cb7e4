"""Terms that contrast tokens: `mcl`, `ptc` and `cre` (method §4.6).

- `mcl`: the class tokens of an image should differ from each other.
- `ptc`: patches of one label should be alike, patches of two labels different.
- `cre`, confident regions: a class token moves to its confident patches.

B batch, C classes, K present classes (padded), D channels, h×w = N patches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.method.cam import Present
from more.method.labels import IGNORE
from more.method.losses.classification import multilabel_soft_margin
from more.tensors import EPS, Reduce, counts, full

# mcl: class tokens with each other.


def class_token_decorrelation(tokens: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross entropy that asks every unit token to be most similar to itself.

    Args:
        tokens: `[B, C, D]`, class tokens.
        temperature: of the softmax.

    Returns:
        A scalar, the mean over images and classes; ln C with zero gradient when all tokens of an
        image are equal.
    """
    unit = F.normalize(full(tokens), dim=-1, eps=1e-12)
    logits = unit @ unit.transpose(1, 2) / temperature
    return -logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).mean()


def mixed_class_token_loss(tokens: Tensor, tags: Tensor, temperature: float = 0.07) -> Tensor:
    """Half decorrelation, half classification by the mean channel of the unit tokens.

    The form behind the published COCO log; the released scripts do not use it.

    Args:
        tokens: `[B, C, D]`, class tokens.
        tags: `[B, C]`, zeros and ones.
        temperature: of the softmax.

    Returns:
        A scalar.
    """
    logits = F.normalize(full(tokens), dim=-1, eps=1e-12).mean(dim=-1)
    decorrelation = class_token_decorrelation(tokens, temperature)
    return 0.5 * decorrelation + 0.5 * multilabel_soft_margin(logits, tags)


# ptc: patches with each other. N = h·w patches; label 0 is background, 255 uncertain.

# Patches whose similarities to all others are held at a time, and pairs of a batch up to which its
# images go together, in one chunk on a GPU.
CHUNK = {"cpu": 256, "cuda": 4096}
FEW = {"cpu": 2**17, "cuda": 2**25}


def patch_affinity(labels: Tensor) -> Tensor:
    """Which pairs of patches belong together.

    Args:
        labels: `[B, h, w]` of 0, 1..C and 255.

    Returns:
        uint8 `[B, N, N]`: 1 for equal labels (background counts as a class), 0 for different ones,
        255 where one is uncertain or both are the same patch.
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
        patch_tokens: `[B, D, h, w]`.
        labels: `[B, h, w]` at the same grid.
        reduce: gives the mean over ranks and passes of the two counts, or is that mean, `[2]`; the
            mean of this loss over ranks and passes is then the loss of the global batch.
        share: part of the global batch in this call, which the "+1" is scaled with.

    Returns:
        A scalar.
    """
    rows, flat = full(patch_tokens).flatten(2).transpose(1, 2), labels.flatten(1).long()
    numbers = counts(lambda: [n.to(rows.dtype) for n in pair_counts(flat)], reduce) + share
    factors = torch.stack([-0.5 / numbers[0], 0.5 / numbers[1]])
    gradient = torch.is_grad_enabled() and rows.requires_grad
    return 0.5 + _WeightedSimilarity.apply(rows, flat, factors, gradient)


def pair_counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of ordered pairs of two known patches, equal ones and different ones.

    Args:
        labels: `[B, N]`, int64.
    """
    known = (labels != IGNORE).long()
    # Room for every value a label may have: the largest one is not asked for.
    sizes = labels.new_zeros(len(labels), IGNORE + 1).scatter_add_(1, labels, known)
    alike, every = sizes.square().sum(), sizes.sum(dim=1).square().sum()
    return alike - sizes.sum(), every - alike


class _WeightedSimilarity(torch.autograd.Function):
    """`Σ w·|cosine|` over pairs of known patches, w by whether their labels are equal.

    Value and gradient are made together, for a chunk of patches at a time, so that neither a matrix
    of all pairs is kept nor one computed twice.
    """

    @staticmethod
    def forward(ctx, rows, labels, factors, gradient) -> Tensor:
        """rows `[B, N, D]`, labels `[B, N]`, factors `[2]` of equal and of different pairs."""
        batch, count, _ = rows.shape
        if batch * count**2 <= FEW[rows.device.type]:
            total, found = _similarities(rows, labels, factors, gradient)
        else:
            total, found = rows.new_zeros(()), torch.zeros_like(rows) if gradient else None
            for image in range(batch):
                part, slope = _of_one(rows[image], labels[image], factors, gradient)
                total += part
                if gradient:
                    found[image] = slope
        ctx.save_for_backward(found)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor, None, None, None]:
        """Gradient for the rows only."""
        return upstream * ctx.saved_tensors[0], None, None, None


def _of_one(rows: Tensor, labels: Tensor, factors: Tensor,
            gradient: bool) -> tuple[Tensor, Tensor | None]:
    """`_similarities` of an image; on a CPU without the uncertain patches, whose weight is 0.

    (A GPU computes them along: the CPU would have to wait for their number.)
    """
    places = None if rows.is_cuda else (labels != IGNORE).nonzero()[:, 0]
    if places is not None:
        rows, labels, whole = rows.index_select(0, places), labels[places], rows
    total, slope = _similarities(rows[None], labels[None], factors, gradient)
    if not gradient or places is None:
        return total, slope[0] if gradient else None
    return total, torch.zeros_like(whole).index_copy_(0, places, slope[0])


def _similarities(rows: Tensor, labels: Tensor, factors: Tensor,
                  gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The sum over pairs in rows `[b, n, D]` and, where asked for, its gradient."""
    length = rows.norm(dim=-1, keepdim=True)
    unit = rows / length.clamp(min=EPS)
    d_unit = torch.zeros_like(unit) if gradient else None
    unknown, total = labels == IGNORE, rows.new_zeros(())
    chunk = CHUNK[rows.device.type]
    for start in range(0, rows.shape[1], chunk):
        mine, rest = unit[:, start : start + chunk], unit[:, start:]
        similarity = mine @ rest.transpose(1, 2)
        weights = _weights(labels, unknown, start, chunk, factors)
        if not gradient:
            total += (similarity.abs_() * weights).sum()
            continue
        signed = similarity.sign().mul_(weights)
        total += (similarity * signed).sum()
        d_unit[:, start : start + chunk] += signed @ rest
        d_unit[:, start:] += signed.transpose(1, 2) @ mine
    if not gradient:
        return total, None
    along = (unit * d_unit).sum(dim=-1, keepdim=True) * (length > EPS)
    return total, d_unit.addcmul_(unit, along, value=-1).div_(length.clamp_(min=EPS))


def _weights(labels: Tensor, unknown: Tensor, start: int, chunk: int, factors: Tensor) -> Tensor:
    """Weights of the pairs of a chunk's patches with themselves and all later ones."""
    end = start + chunk
    weights = torch.where(labels[:, start:end, None] == labels[:, None, start:], *factors)
    weights.masked_fill_(unknown[:, start:end, None] | unknown[:, None, start:], 0)
    weights.diagonal(dim1=1, dim2=2).fill_(0)
    weights[:, :, end - start :] *= 2  # each pair of two chunks is met once
    return weights


# cre: a class token with the patches of its image.

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
