"""The objective: masks from CAMs, all loss terms, their starts and their sum (method §4.8).

B batch, C classes, D channels, H×W pixels, h×w patches, M chosen patches of URE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from more.config.schema import CamConfig, Config, LossConfig
from more.method.cam import Present, PresentMaps, minmax, resize
from more.method.heads import localization_maps
from more.method.labels import (
    Batch,
    Labels,
    Masks,
    cam_to_label,
    denormalise,
    refined_label,
    scale_box,
)
from more.method.losses.classification import decoder_terms, kind_counts, multilabel_soft_margin
from more.method.losses.contrast import (
    class_token_decorrelation,
    confident_region_loss,
    mixed_class_token_loss,
    pair_counts,
    patch_contrast_loss,
    positive_pairs,
)
from more.method.losses.energy import Filter, energy_filter
from more.method.losses.ure import check_grid, select_uncertain, uncertain_region_loss
from more.method.par import PixelAdaptiveRefinement
from more.tensors import Reduce, box_mask, full

TERMS = ("cls", "cls_aux", "mcl", "cre", "ure", "ptc", "seg", "energy")
"""The fields of TermConfig, in the order in which they are summed and reported."""


class Objective:
    """Weighted sum of the method's terms.

    Args:
        loss: weights, starts and options of the terms.
        cam: thresholds of the masks, and settings of the pixel-adaptive refinement.
        crop: side of a training crop in pixels, which distances in `cam.par_dilations` may be
            shares of.
        filter: bilateral filter of the dense energy; None: the one that `loss` names.
        compute_inactive: also compute what the total does not need, for comparisons: the decoder's
            terms before their start and terms of weight 0 (both are reported as 0 otherwise).
        similarity: of the LAM that pseudo-labels may come from, "dot" or "cosine".
    """

    def __init__(self, loss: LossConfig, cam: CamConfig, crop: int, filter: Filter | None = None,
                 compute_inactive: bool = False, similarity: str = "dot") -> None:
        self.loss, self.cam, self.similarity = loss, cam, similarity
        self.weights, self.start = asdict(loss.weights), asdict(loss.start)
        self.filter = energy_filter(loss.energy_filter) if filter is None else filter
        self.compute_inactive = compute_inactive
        self.par = PixelAdaptiveRefinement(cam.dilations(crop), cam.par_iterations)

    @property
    def label_levels(self) -> tuple[float, float]:
        """High and low threshold of the decoder's labels; where unset (-1) those of the CAM."""
        return tuple(own if level == -1 else level for level, own in (
            (self.loss.label_high, self.cam.high), (self.loss.label_low, self.cam.low)))

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError when the patch grid (rows, columns) is too small for a used term."""
        if self.weights["ure"] != 0:
            check_grid(*grid)

    def active(self, term: str, step: int) -> bool:
        """Whether a term takes part in the total at an iteration index."""
        return self.weights[term] != 0 and step > self.start[term]

    def needs_cams(self, step: int) -> bool:
        """Whether a term that is made from CAMs takes part at an iteration index."""
        return any(self.active(term, step) for term in ("cre", "ure", "ptc", "seg", "energy"))

    def needs_counts(self, step: int) -> bool:
        """Whether a term is divided by a count that only the masks of an update's passes give."""
        pairs = self._computed("cre") and self.loss.cre_reduction == "pairs"
        return self.needs_cams(step) and (
            pairs or self._computed("ure") or self._computed("ptc") or self._wanted("seg", step))

    def __call__(
        self, output: Any, batch: Batch, step: int, positions: Tensor | None = None,
        labels: Labels | None = None, numbers: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """All terms and their weighted sum.

        Args:
            output: the network's output (fields of `more.method.network.NetworkOutput`).
            batch: images, tags and CAMs.
            step: iteration index, from 0.
            positions: `[B, M, 2]` patches for URE in place of a random choice, padded with -1.
            labels: from `labels`, where they are known; the batch then needs no CAMs.
            numbers: of `mean_counts` over the passes of the update; None: of this pass alone.

        Returns:
            Scalars by the names of `TERMS`, unweighted, and "total". Every output that leads to
            parameters takes part in the total, with weight 0 where its terms are off: gradients are
            then zero and never missing.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            terms = self._token_terms(output, batch)
            off = output.logits.new_zeros((), dtype=torch.float32)
            terms |= dict.fromkeys(("cre", "ure", "ptc", "seg", "energy"), off)
            if labels is None:
                labels = self.labels(output, batch, step, positions)
            if labels is not None:
                if numbers is None and batch.count_reduce is not None:
                    numbers = mean_counts([self.counts(labels, batch.shown, off.dtype)],
                                          batch.count_reduce)
                terms |= self._region_terms(output, batch, labels, numbers or {})
                terms |= self._decoder_terms(output, batch, step, labels, numbers or {})
            total = _anchor(output)
            for term in TERMS:
                if self.active(term, step):
                    total = total + self.weights[term] * terms[term]
        return {**{term: terms[term] for term in TERMS}, "total": total}

    @torch.no_grad()
    def labels(
        self, output: Any, batch: Batch, step: int, positions: Tensor | None = None
    ) -> Labels | None:
        """What the terms of an update learn from; None where the batch has no CAMs.

        Args:
            output: this and the others as in a call.
            batch: see there.
            step: see there.
            positions: see there.
        """
        if batch.cams is None:
            return None
        with torch.autocast(output.logits.device.type, enabled=False):
            masks = self.masks(output, batch, step)
            decoder = self._wanted("seg", step) or self._wanted("energy", step)
            places = None
            if self._computed("ure"):
                places = self._positions(masks.uncertain, batch, positions)
            return Labels(masks, places, self.pseudo_label(output, batch) if decoder else None)

    @torch.no_grad()
    def counts(self, labels: Labels, tags: Tensor | Present,
               dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The numbers that the terms of a pass are divided by, by term: for `mean_counts`."""
        found, masks = {}, labels.masks
        if self._computed("cre") and self.loss.cre_reduction == "pairs":
            found["cre"] = [positive_pairs(masks.confident, tags)]
        if labels.places is not None:
            found["ure"] = [labels.places[1].sum()]
        if self._computed("ptc"):
            found["ptc"] = pair_counts(masks.contrast.flatten(1).long())
        if labels.pixels is not None:
            found["seg"] = kind_counts(labels.pixels, dtype)
        return {term: torch.stack([value.to(dtype) for value in values])
                for term, values in found.items()}

    @torch.no_grad()
    def masks(self, output: Any, batch: Batch, step: int) -> Masks:
        """Patch labels of the terms ptc, cre and ure.

        Until `cam.late_after` all come from the auxiliary CAM, then those of cre and ure from the
        main one.
        """
        cam, tags, box = self.cam, batch.tags, None
        grid = tuple(output.patch_tokens.shape[-2:])
        if self.loss.exclude_padding and batch.box is not None:
            box = scale_box(batch.box, tuple(batch.images.shape[-2:]), grid)
        aux = resize(_present(batch.aux_cams, batch.shown), grid)
        contrast = cam_to_label(aux, tags, cam.high, cam.low, box=box)
        if step > cam.late_after:
            cams = resize(_present(batch.cams, batch.shown), grid)
            confident = cam_to_label(cams, tags, cam.late_high, cam.late_low, box=box)
            uncertain = confident
        else:
            confident = cam_to_label(aux, tags, cam.cre_high, cam.cre_low, box=box)
            uncertain = contrast
        if box is not None:  # padding is ignored elsewhere; for URE it must not look uncertain
            uncertain = uncertain.masked_fill(~box_mask(box, grid), 0)
        return Masks(contrast, confident, uncertain)

    @torch.no_grad()
    def pseudo_label(self, output: Any, batch: Batch) -> Tensor:
        """The decoder's labels `[B, H, W]`: PAR-refined CAM, or LAM as an option."""
        if self.loss.pseudo_label == "cam":
            maps = batch.cams
        elif batch.lams is not None:
            maps = batch.lams
        else:
            maps = minmax(localization_maps(output.patch_tokens, output.graph_tokens,
                                            self.similarity))
        images = denormalise(full(batch.images), batch.mean, batch.std)
        maps = resize(_present(maps, batch.shown), tuple(images.shape[-2:]))
        box = batch.box if self.loss.exclude_padding else None
        return refined_label(images, maps, batch.tags, *self.label_levels, self.par, box)

    def _computed(self, term: str) -> bool:
        return self.compute_inactive or self.weights[term] != 0

    def _token_terms(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        tokens = output.graph_tokens  # after the graph, as all token terms of the release
        if self.loss.mcl_form == "mixed":
            mcl = mixed_class_token_loss(tokens, batch.tags)
        else:
            mcl = class_token_decorrelation(tokens)
        return {
            "cls": multilabel_soft_margin(output.logits, batch.tags),
            "cls_aux": multilabel_soft_margin(output.aux_logits, batch.tags),
            "mcl": mcl,
        }

    def _wanted(self, term: str, step: int) -> bool:
        return self.compute_inactive or self.active(term, step)

    def _region_terms(
        self, output: Any, batch: Batch, labels: Labels, numbers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        loss, masks, terms, patches = self.loss, labels.masks, {}, output.patch_tokens
        if self._computed("cre"):
            terms["cre"] = confident_region_loss(
                output.graph_tokens, patches, masks.confident, batch.shown, loss.temperature,
                loss.cre_similarity, loss.cre_reduction, numbers.get("cre"), batch.share)
        if labels.places is not None:
            terms["ure"] = uncertain_region_loss(
                output.graph_tokens, patches, batch.tags, *labels.places, numbers.get("ure"),
                loss.ure_form)
        if self._computed("ptc"):
            terms["ptc"] = patch_contrast_loss(
                patches, masks.contrast, numbers.get("ptc"), batch.share)
        return terms

    def _positions(
        self, mask: Tensor, batch: Batch, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if positions is not None:
            return positions.long(), positions[..., 0] >= 0
        paper = self.loss.ure_form == "paper"
        return select_uncertain(mask, batch.keys, shift=not paper, most=None if paper else 8)

    def _decoder_terms(self, output: Any, batch: Batch, step: int, labels: Labels,
                       numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Seg and energy; neither they nor their labels are computed before their start."""
        if labels.pixels is None:
            return {}
        wanted = {term for term in ("seg", "energy") if self._wanted(term, step)}
        batch = replace(batch, count_reduce=numbers.get("seg"))
        return decoder_terms(output.seg_logits, labels.pixels, batch, wanted, self.loss,
                             self.filter)


def make_objective(config: Config) -> Objective:
    """The objective of a configuration."""
    return Objective(config.loss, config.cam, config.data.crop,
                     similarity=config.model.lam_similarity)


def mean_counts(passes: Sequence[Mapping[str, Tensor]], reduce: Reduce | None) -> dict[str, Tensor]:
    """`Objective.counts` of an update's passes: their mean over passes and ranks.

    Args:
        passes: counts of this rank's passes.
        reduce: gives the mean over ranks, asked once; None: one rank.
    """
    sizes = {term: len(values) for term, values in passes[0].items()}
    if not sizes:
        return {}
    every = sum(torch.cat([part[term] for term in sizes]) for part in passes) / len(passes)
    parts = (every if reduce is None else reduce(every)).split(list(sizes.values()))
    return dict(zip(sizes, parts, strict=True))


def _present(maps: Tensor | PresentMaps, tags: Tensor | Present) -> PresentMaps:
    """Maps of the present classes in float32."""
    found = PresentMaps.of(maps, tags)
    return replace(found, maps=full(found.maps))


def _anchor(output: Any) -> Tensor:
    """Zero, but with every head's parameters in its graph."""
    heads = (output.class_tokens, output.graph_tokens, output.logits, output.aux_logits,
             output.seg_logits)
    return 0.0 * sum(full(head).sum() for head in heads)
