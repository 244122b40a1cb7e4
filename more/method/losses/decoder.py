"""The decoder's terms: balanced cross entropy and dense energy (method §4.6).

Cross entropy of the decoder, background and foreground in equal parts (method §4.6).

The two terms of the decoder, image by image: segmentation and dense energy (method §4.6).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from more.method.labels import IGNORE, undo_normalisation
from more.method.losses.batch import Batch
from more.method.losses.classification import multilabel_soft_margin
from more.method.losses.energy import Filter, energy_filter, energy_of, shared_affinity, shrunk
from more.method.losses.gradients import Summand, enlarge, with_early_gradients
from more.method.numerics import Reduce, counts, full
from more.method.recipe import Recipe
from more.tensors import constant

PEAK_SHARE = 1 / 32  # part of the patches whose mean probability is the class's in the image
SMALLEST = 1e-6


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
    labels: Tensor, dtype: torch.dtype, reduce: Reduce | None = None, share: float = 1.0,
    weights: Tensor | None = None, balanced: bool = True,
) -> Tensor:
    """Numbers `[2]` of background and foreground pixels, averaged by `reduce`, plus 1e-6.

    Args: weights: `[B, H, W]`, how much each pixel counts; balanced: False counts both kinds
    together, `[1]`. Others as in `balanced_cross_entropy`.
    """
    return counts(lambda: kind_counts(labels, dtype, weights, balanced), reduce) + 1e-6 * share


def kind_counts(labels: Tensor, dtype: torch.dtype, weights: Tensor | None = None,
                balanced: bool = True) -> list[Tensor]:
    """How much background and foreground pixels of a pass count (or both together, `balanced`
    False); arguments as in `pixel_counts`."""
    background, known = labels == 0, labels != IGNORE
    kinds = (background, known > background) if balanced else (known,)
    return [kind.sum(dtype=dtype) if weights is None else (kind * weights).sum().to(dtype)
            for kind in kinds]


def balanced_sum(
    seg_logits: Tensor, labels: Tensor, numbers: Tensor, weights: Tensor | None = None
) -> Tensor:
    """What some images add to `balanced_cross_entropy`; numbers: of the batch they belong to, from
    `pixel_counts` with the same weights."""
    logits = enlarge(full(seg_logits), tuple(labels.shape[-2:]))
    # What a pixel counts goes by its class: of 255 it is nothing.
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
        reduce, share: as in `balanced_cross_entropy`.
    """
    logits = full(seg_logits)
    numbers = pixel_counts(labels, logits.dtype, reduce, share, weights, balanced)

    def summand(part: Tensor, rows: slice) -> Tensor:
        own = None if weights is None else weights[rows]
        return balanced_sum(part, labels[rows], numbers, own)
    return with_early_gradients(logits, {"seg": summand}, tuple(labels.shape[-2:]))["seg"]


def image_tags_loss(seg_logits: Tensor, tags: Tensor) -> Tensor:
    """Whether the prediction shows the image's classes somewhere, and no others.

    The multi-label soft margin of the log-odds of `shown_probabilities`. Tags are known exactly
    where masks are guesses.

    Args: seg_logits `[B, C+1, h, w]`, tags `[B, C]`. Returns: a scalar.
    """
    shown = shown_probabilities(seg_logits)
    return multilabel_soft_margin(shown.clamp(SMALLEST, 1 - SMALLEST).logit(), tags)


def shown_probabilities(seg_logits: Tensor) -> Tensor:
    """How likely images show each class `[B, C]`, by the decoder's logits `[B, C+1, h, w]`: its
    mean probability over the patches where it is likeliest, one in 32."""
    flat = full(seg_logits).softmax(1)[:, 1:].flatten(2)
    return flat.topk(max(1, round(PEAK_SHARE * flat.shape[-1])), dim=-1).values.mean(-1)


def decoder_terms(
    seg_logits: Tensor,
    labels: Tensor,
    batch: Batch,
    wanted: Collection[str],
    recipe: Recipe,
    filter: Filter | None = None,
) -> dict[str, Tensor]:
    """`balanced_cross_entropy` and `dense_energy` of a batch, with little memory.

    Args:
        seg_logits: `[B, C+1, h, w]`, at any size.
        labels: `[B, H, W]`, 255 uncertain.
        batch: its images, box, normalisation and counts.
        wanted: names among "seg" and "energy".
        recipe: options of the energy.
        filter: as in `dense_energy`.

    Returns: scalars by name, which can be differentiated once.
    """
    logits = full(seg_logits)
    summands = {}
    if "energy" in wanted:  # first: a GPU is waited for while it makes the lattice, see there
        summands["energy"] = _energy(labels, batch, recipe, filter, logits)
    if "seg" in wanted:
        summands["seg"] = _segmentation(labels, batch, logits)
    return with_early_gradients(logits, summands, tuple(labels.shape[-2:]))


def _segmentation(labels: Tensor, batch: Batch, like: Tensor) -> Summand:
    numbers = pixel_counts(labels, like.dtype, batch.count_reduce, batch.share)

    def summand(logits: Tensor, rows: slice) -> Tensor:
        return balanced_sum(logits, labels[rows], numbers)
    return summand


def _energy(labels: Tensor, batch: Batch, recipe: Recipe, filter: Filter | None, like: Tensor
            ) -> Summand:
    box, scale = batch.box if recipe.exclude_padding else None, recipe.energy_scale
    factor, size = recipe.energy_weight / len(labels), shrunk(labels, scale)
    small = F.interpolate(full(batch.images), size=size, mode="nearest")
    small = undo_normalisation(small, batch.mean, batch.std).to(like.dtype)
    affinity = shared_affinity(filter or energy_filter("lattice"), small,
                               recipe.energy_sigma_xy * scale, recipe.energy_sigma_rgb)

    def summand(logits: Tensor, rows: slice) -> Tensor:
        return energy_of(logits, labels[rows], None if box is None else box[rows], factor, size,
                         affinity(rows))
    return summand
