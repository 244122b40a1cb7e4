"""The objective: masks from CAMs, all loss terms, their switches and their sum (method §4.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from more.localization.maps import minmax, resize
from more.localization.par import PixelAdaptiveRefinement
from more.localization.refined import refined_label
from more.localization.regions import (
    MEAN,
    STD,
    box_mask,
    cam_to_label,
    denormalise,
    mask_cams,
    scale_box,
    undo_normalisation,
)
from more.losses.affinity import patch_contrast_loss
from more.losses.classification import multilabel_soft_margin
from more.losses.confident import confident_region_loss
from more.losses.decorrelation import class_token_decorrelation, mixed_class_token_loss
from more.losses.energy import Filter, dense_energy
from more.losses.precision import Reduce, full
from more.losses.recipe import COCO, TERMS, VOC, Recipe
from more.losses.segmentation import balanced_cross_entropy
from more.losses.uncertain import check_grid, select_uncertain, uncertain_region_loss

__all__ = ["COCO", "TERMS", "VOC", "Batch", "Objective", "Recipe"]


@dataclass
class Batch:
    """What the losses need besides the network's output."""

    images: Tensor
    """`[B, 3, H, W]` normalised, float32."""
    tags: Tensor
    """`[B, C]` zeros and ones."""
    cams: Tensor | None
    """`[B, C, H, W]` multi-scale CAMs in 0..1; None where `needs_cams` is false: the terms that
    are made from CAMs are then left out."""
    aux_cams: Tensor | None
    """`[B, C, H, W]` likewise of the auxiliary classifier."""
    box: Tensor | None = None
    """`[B, 4]` (y0, y1, x0, x1) of the real image inside its padding, pixels."""
    keys: Tensor | None = None
    """`[B, 2, h·w]` uniform numbers for URE's choices; None: torch's default generator."""
    count_reduce: Reduce | None = None
    """Mean over ranks of a tensor of counts; None: one rank."""
    share: float = 1.0
    """Part of the global batch in this one: 1 / (number of values `count_reduce` averages)."""
    mean: Sequence[float] = MEAN
    """Of the normalisation, scale 0..255."""
    std: Sequence[float] = STD
    """Of the normalisation, scale 0..255."""
    lams: Tensor | None = None
    """`[B, C, H, W]` LAMs in 0..1 for decoder labels from LAM; None: made from the output."""


class Masks(NamedTuple):
    """Labels of patches, each `[B, h, w]`."""

    contrast: Tensor
    confident: Tensor
    uncertain: Tensor


class Objective:
    """Weighted sum of the method's terms.

    Args:
        recipe: weights, switches, thresholds and options; `VOC` and `COCO` are the released ones.
        compute_inactive: also compute what the total does not need, for comparisons: the decoder's
            terms before their start and terms of weight 0 (both are reported as 0 otherwise).
        filter: bilateral filter of the dense energy; default: the permutohedral lattice.
    """

    def __init__(
        self, recipe: Recipe = VOC, compute_inactive: bool = False, filter: Filter | None = None
    ) -> None:
        self.recipe = recipe
        self.compute_inactive = compute_inactive
        self.filter = filter
        self.par = PixelAdaptiveRefinement(recipe.par_dilations, recipe.par_iterations)

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError when the patch grid (rows, columns) is too small for a used term."""
        if self.recipe.weights["ure"] != 0:
            check_grid(*grid)

    def active(self, term: str, step: int) -> bool:
        """Whether a term takes part in the total at an iteration index."""
        return self.recipe.weights[term] != 0 and step > self.recipe.start[term]

    def needs_cams(self, step: int) -> bool:
        """Whether a term that is made from CAMs takes part at an iteration index."""
        return any(self.active(term, step) for term in ("cre", "ure", "ptc", "seg", "energy"))

    def __call__(
        self, output: Any, batch: Batch, step: int, positions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All terms and their weighted sum.

        Args:
            output: the network's output (fields of `more.model.network.NetworkOutput`).
            step: iteration index, from 0.
            positions: `[B, M, 2]` patches for URE in place of a random choice, padded with -1.

        Returns: scalars by the names of `TERMS`, unweighted, and "total". Every output that leads
        to parameters takes part in the total, with weight 0 where its terms are off: gradients
        are then zero and never missing.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            terms = self._token_terms(output, batch)
            off = output.logits.new_zeros((), dtype=torch.float32)
            terms |= dict.fromkeys(("cre", "ure", "ptc", "seg", "energy"), off)
            if batch.cams is not None:
                terms |= self._region_terms(output, batch, step, positions)
                terms |= self._decoder_terms(output, batch, step)
            total = _anchor(output)
            for term in TERMS:
                if self.active(term, step):
                    total = total + self.recipe.weights[term] * terms[term]
        return {**{term: terms[term] for term in TERMS}, "total": total}

    @torch.no_grad()
    def masks(self, output: Any, batch: Batch, step: int) -> Masks:
        """Patch labels of the three region terms: early from the auxiliary CAM, late the main."""
        recipe, tags, box = self.recipe, batch.tags, None
        grid = tuple(output.patch_tokens.shape[-2:])
        if recipe.exclude_padding and batch.box is not None:
            box = scale_box(batch.box, tuple(batch.images.shape[-2:]), grid)
        aux = resize(full(batch.aux_cams), grid)
        contrast = cam_to_label(aux, tags, recipe.high, recipe.low, box=box)
        if step > recipe.late_after:
            cams = resize(full(batch.cams), grid)
            confident = cam_to_label(cams, tags, recipe.late_high, recipe.late_low, box=box)
            uncertain = confident
        else:
            confident = cam_to_label(aux, tags, recipe.cre_high, recipe.cre_low, box=box)
            uncertain = contrast
        if box is not None:  # padding is ignored elsewhere; for URE it must not look uncertain
            uncertain = uncertain.masked_fill(~box_mask(box, grid), 0)
        return Masks(contrast, confident, uncertain)

    @torch.no_grad()
    def pseudo_label(self, output: Any, batch: Batch) -> Tensor:
        """The decoder's labels `[B, H, W]`: PAR-refined CAM, or LAM as an option."""
        if self.recipe.pseudo_label == "cam":
            maps = batch.cams
        elif batch.lams is not None:
            maps = batch.lams
        else:
            patches, tokens = full(output.patch_tokens), full(output.graph_tokens)
            maps = minmax(torch.einsum("bdhw,bkd->bkhw", patches, tokens))
        images = denormalise(full(batch.images), batch.mean, batch.std)
        maps = resize(full(maps), tuple(images.shape[-2:]))
        high, low = self.recipe.high, self.recipe.low
        box = self._box(batch)
        return refined_label(images, mask_cams(maps, batch.tags), batch.tags, high, low, self.par,
                             box)

    def _box(self, batch: Batch) -> Tensor | None:
        return batch.box if self.recipe.exclude_padding else None

    def _computed(self, term: str) -> bool:
        return self.compute_inactive or self.recipe.weights[term] != 0

    def _token_terms(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        tokens = output.graph_tokens  # after the graph, as all token terms of the release
        if self.recipe.mcl_form == "mixed":
            mcl = mixed_class_token_loss(tokens, batch.tags)
        else:
            mcl = class_token_decorrelation(tokens)
        return {
            "cls": multilabel_soft_margin(output.logits, batch.tags),
            "cls_aux": multilabel_soft_margin(output.aux_logits, batch.tags),
            "mcl": mcl,
        }

    def _region_terms(
        self, output: Any, batch: Batch, step: int, positions: Tensor | None
    ) -> dict[str, Tensor]:
        recipe, reduce, terms = self.recipe, batch.count_reduce, {}
        masks, patches = self.masks(output, batch, step), output.patch_tokens
        if self._computed("cre"):
            terms["cre"] = confident_region_loss(
                output.graph_tokens, patches, masks.confident, batch.tags, recipe.temperature,
                recipe.cre_similarity, recipe.cre_reduction, reduce, batch.share)
        if self._computed("ure"):
            places = self._positions(masks.uncertain, batch, positions)
            terms["ure"] = uncertain_region_loss(
                output.graph_tokens, patches, batch.tags, *places, reduce, recipe.ure_form)
        if self._computed("ptc"):
            terms["ptc"] = patch_contrast_loss(patches, masks.contrast, reduce, batch.share)
        return terms

    def _positions(
        self, mask: Tensor, batch: Batch, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if positions is not None:
            return positions.long(), positions[..., 0] >= 0
        paper = self.recipe.ure_form == "paper"
        return select_uncertain(mask, batch.keys, shift=not paper, most=None if paper else 8)

    def _decoder_terms(self, output: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Seg and energy; neither they nor their labels are computed before their start."""
        recipe = self.recipe
        wanted = {t for t in ("seg", "energy") if self.compute_inactive or self.active(t, step)}
        terms: dict[str, Tensor] = {}
        if not wanted:
            return terms
        labels = self.pseudo_label(output, batch)
        logits = resize(full(output.seg_logits), tuple(batch.images.shape[-2:]))
        if "seg" in wanted:
            terms["seg"] = balanced_cross_entropy(logits, labels, batch.count_reduce, batch.share)
        if "energy" in wanted:
            images = undo_normalisation(full(batch.images), batch.mean, batch.std)
            terms["energy"] = dense_energy(
                logits, images, labels, self._box(batch), recipe.energy_weight,
                recipe.energy_sigma_rgb, recipe.energy_sigma_xy, recipe.energy_scale, self.filter)
        return terms


def _anchor(output: Any) -> Tensor:
    """Zero, but with every head's parameters in its graph."""
    heads = (output.class_tokens, output.graph_tokens, output.logits, output.aux_logits,
             output.seg_logits)
    return 0.0 * sum(full(head).sum() for head in heads)
