"""Terms that classify: `cls` and `cls_aux` images by their tags, `seg` pixels (method §4.6).

`seg` is the decoder's cross entropy; background and foreground count in equal parts. Losses at full
size take much memory, so `decoder_terms` computes `seg` and `energy` for some images at a time
(`more.method.gradients`).

B batch, C classes, H×W pixels, h×w patches; label 255 is uncertain.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from more.config.schema import LossConfig
from more.method.gradients import Summand, enlarge, with_forward_gradients
from more.method.heads import log_odds, shown_probabilities
from more.method.labels import IGNORE, Batch, undo_normalisation
from more.method.losses.energy import (
    SCALE,
    Filter,
    energy_filter,
    energy_of,
    shared_affinity,
    shrunk,
)
from more.tensors import Reduce, constant, counts, full

# Images.


def multilabel_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean over images and classes of `-[y log σ(x) + (1-y) log σ(-x)]`.

    Args:
        logits: `[B, C]`.
        tags: `[B, C]`, zeros and ones.

    Returns:
        A scalar.
    """
    logits = full(logits)
    return F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype))


def image_tags_loss(seg_logits: Tensor, tags: Tensor) -> Tensor:
    """Whether the prediction shows the image's classes somewhere, and no others.

    The multi-label soft margin of the log-odds of `shown_probabilities`. Tags are known exactly
    where masks are guesses.

    Args:
        seg_logits: `[B, C+1, h, w]`, the decoder's.
        tags: `[B, C]`, zeros and ones.

    Returns:
        A scalar.
    """
    shown = shown_probabilities(seg_logits)
    return multilabel_soft_margin(log_odds(shown), tags)


# Pixels.


def balanced_cross_entropy(
    seg_logits: Tensor, labels: Tensor, reduce: Reduce | None = None, share: float = 1.0
) -> Tensor:
    """Mean of the cross entropies over background pixels and over foreground pixels.

    Each is a sum over (count + 1e-6); pixels of value 255 are left out.

    Args:
        seg_logits: `[B, C+1, h, w]`, resized to the size of the labels.
        labels: `[B, H, W]`.
        reduce: as in `patch_contrast_loss`.
        share: as in `patch_contrast_loss`.

    Returns:
        A scalar, 0 with zero gradient when all is left out.
    """
    numbers = pixel_counts(labels, full(seg_logits).dtype, reduce, share)
    return balanced_sum(seg_logits, labels, numbers)


def pixel_counts(
    labels: Tensor, dtype: torch.dtype, reduce: Reduce | None = None, share: float = 1.0,
    weights: Tensor | None = None, balanced: bool = True,
) -> Tensor:
    """Numbers `[2]` of background and foreground pixels, averaged by `reduce`, plus 1e-6.

    Args:
        labels: `[B, H, W]`.
        dtype: of the result.
        reduce: as in `patch_contrast_loss`.
        share: as in `patch_contrast_loss`.
        weights: `[B, H, W]`, how much each pixel counts; None: all alike.
        balanced: False counts both kinds together, `[1]`.
    """
    return counts(lambda: kind_counts(labels, dtype, weights, balanced), reduce) + 1e-6 * share


def kind_counts(labels: Tensor, dtype: torch.dtype, weights: Tensor | None = None,
                balanced: bool = True) -> list[Tensor]:
    """How many background and foreground pixels a pass has, or both together.

    Args:
        labels: this and the others as in `pixel_counts`.
        dtype: see there.
        weights: see there.
        balanced: see there.
    """
    background, known = labels == 0, labels != IGNORE
    kinds = (background, known > background) if balanced else (known,)
    return [kind.sum(dtype=dtype) if weights is None else (kind * weights).sum().to(dtype)
            for kind in kinds]


def balanced_sum(
    seg_logits: Tensor, labels: Tensor, numbers: Tensor, weights: Tensor | None = None
) -> Tensor:
    """What some images of a batch add to `balanced_cross_entropy`.

    Args:
        seg_logits: `[b, C+1, h, w]`, of these images.
        labels: `[b, H, W]`.
        numbers: of the whole batch, from `pixel_counts` with the same weights.
        weights: `[b, H, W]`, how much each pixel counts; None: all alike.
    """
    logits = enlarge(full(seg_logits), tuple(labels.shape[-2:]))
    # A pixel counts by its class; one of 255 does not count.
    shares = (1 / len(numbers) / numbers).to(logits.dtype)
    classes = constant([0, *[len(numbers) - 1] * (logits.shape[1] - 1)], labels.new_empty(0).long())
    losses = F.cross_entropy(logits, labels.long(), shares.index_select(0, classes),
                             ignore_index=IGNORE, reduction="none")
    return (losses if weights is None else losses * weights).sum()


def mask_loss(
    seg_logits: Tensor, labels: Tensor, weights: Tensor | None = None, balanced: bool = True,
    reduce: Reduce | None = None, share: float = 1.0,
) -> Tensor:
    """Cross entropy against masks, with little memory; it can be differentiated once.

    Args:
        seg_logits: `[B, C+1, h, w]`, resized to the size of the labels.
        labels: `[B, H, W]`; 255 is left out.
        weights: `[B, H, W]`, how much each pixel counts; None: all alike.
        balanced: background and foreground in equal parts, as in training on tags; else every
            pixel as much as its weight.
        reduce: as in `balanced_cross_entropy`.
        share: as in `balanced_cross_entropy`.

    Returns:
        A scalar, 0 with zero gradient when nothing counts.
    """
    logits = full(seg_logits)
    numbers = pixel_counts(labels, logits.dtype, reduce, share, weights, balanced)

    def summand(part: Tensor, rows: slice) -> Tensor:
        own = None if weights is None else weights[rows]
        return balanced_sum(part, labels[rows], numbers, own)
    return with_forward_gradients(logits, {"seg": summand}, tuple(labels.shape[-2:]))["seg"]


def decoder_terms(
    seg_logits: Tensor,
    labels: Tensor,
    batch: Batch,
    wanted: Collection[str],
    loss: LossConfig,
    filter: Filter | None = None,
) -> dict[str, Tensor]:
    """`balanced_cross_entropy` and `dense_energy` of a batch, with little memory.

    Args:
        seg_logits: `[B, C+1, h, w]`, at any size.
        labels: `[B, H, W]`, 255 uncertain.
        batch: its images, box, normalisation and counts.
        wanted: names among "seg" and "energy".
        loss: options of the energy.
        filter: as in `dense_energy`.

    Returns:
        Scalars by name, which can be differentiated once.
    """
    logits = full(seg_logits)
    summands = {}
    if "energy" in wanted:  # first: a GPU is waited for while it makes the lattice, see there
        summands["energy"] = _energy(labels, batch, loss, filter, logits)
    if "seg" in wanted:
        summands["seg"] = _segmentation(labels, batch, logits)
    return with_forward_gradients(logits, summands, tuple(labels.shape[-2:]))


def _segmentation(labels: Tensor, batch: Batch, like: Tensor) -> Summand:
    numbers = pixel_counts(labels, like.dtype, batch.count_reduce, batch.share)

    def summand(logits: Tensor, rows: slice) -> Tensor:
        return balanced_sum(logits, labels[rows], numbers)
    return summand


def _energy(labels: Tensor, batch: Batch, loss: LossConfig, filter: Filter | None, like: Tensor
            ) -> Summand:
    box, scale = batch.box if loss.exclude_padding else None, SCALE
    factor, size = loss.energy_weight / len(labels), shrunk(labels, scale)
    small = F.interpolate(full(batch.images), size=size, mode="nearest")
    small = undo_normalisation(small, batch.mean, batch.std).to(like.dtype)
    affinity = shared_affinity(filter or energy_filter("lattice"), small,
                               loss.energy_sigma_xy * scale, loss.energy_sigma_rgb)

    def summand(logits: Tensor, rows: slice) -> Tensor:
        return energy_of(logits, labels[rows], None if box is None else box[rows], factor, size,
                         affinity(rows))
    return summand
