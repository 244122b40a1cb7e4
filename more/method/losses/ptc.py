"""Term `ptc`, patch contrast: patches of one label alike, of two labels different (method §4.6).

B batch, D channels, h×w = N patches; label 0 is background, 255 uncertain.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.method.labels import IGNORE
from more.tensors import EPS, Reduce, counts, full

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
