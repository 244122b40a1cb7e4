"""The two terms of the decoder, image by image: segmentation and dense energy (method §4.6)."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from more.localization.regions import undo_normalisation
from more.losses.batch import Batch
from more.losses.early import Summand, with_early_gradients
from more.losses.energy import Filter, dense_energy
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
    if "seg" in wanted:
        summands["seg"] = _segmentation(labels, batch, logits)
    if "energy" in wanted:
        summands["energy"] = _energy(labels, batch, recipe, filter)
    return with_early_gradients(logits, summands, tuple(labels.shape[-2:]))


def _segmentation(labels: Tensor, batch: Batch, like: Tensor) -> Summand:
    numbers = pixel_counts(labels, like.dtype, batch.count_reduce, batch.share)

    def summand(logits: Tensor, rows: slice) -> Tensor:
        return balanced_sum(logits, labels[rows], numbers)
    return summand


def _energy(labels: Tensor, batch: Batch, recipe: Recipe, filter: Filter | None) -> Summand:
    box = batch.box if recipe.exclude_padding else None

    def summand(logits: Tensor, rows: slice) -> Tensor:
        images = undo_normalisation(full(batch.images[rows]), batch.mean, batch.std)
        weight = recipe.energy_weight * len(logits) / len(labels)  # it divides by these images
        return dense_energy(
            logits, images, labels[rows], None if box is None else box[rows], weight,
            recipe.energy_sigma_rgb, recipe.energy_sigma_xy, recipe.energy_scale, filter)
    return summand
