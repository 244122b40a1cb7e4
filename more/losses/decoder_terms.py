"""The two terms of the decoder, image by image: segmentation and dense energy (method §4.6)."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor

from more.localization.regions import undo_normalisation
from more.losses.batch import Batch
from more.losses.early import Summand, with_early_gradients
from more.losses.energy import Filter, energy_filter, energy_of, shared_affinity, shrunk
from more.losses.precision import full
from more.losses.recipe import Recipe
from more.losses.segmentation import balanced_sum, pixel_counts


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
