"""Labels from maps: thresholds, and PAR with two background levels."""

from __future__ import annotations

import torch

from more.bench.measure import show_tables
from more.method.cam import resize
from more.method.labels import cam_to_label, mask_cams, refined_label
from more.method.par import PixelAdaptiveRefinement
from tests.oracles import labels as plain
from tests.oracles import step
from tests.research.kernels import CPU, NOTES, Kernel, Results, measure
from tests.research.losses import HIGH, LOW, draw_cams, draw_tags

PATCH = 16  # pixels of a patch's side


def kernels(classes: int, batch: int, patches: int, device: torch.device = CPU) -> list[Kernel]:
    """Label maps and refined labels at full size with their plain formulas."""
    generator, side = torch.Generator().manual_seed(0), PATCH * patches
    tags = draw_tags(classes, batch, generator)
    cams = draw_cams(classes, batch, side, generator)
    grain = torch.rand(batch, 3, side // 8, side // 8, generator=generator)
    images, cams, tags = (t.to(device) for t in (resize(grain, (side, side)), cams, tags))
    masked, par = mask_cams(cams, tags), PixelAdaptiveRefinement()

    def label() -> Results:
        return {"label": cam_to_label(cams, tags, HIGH, LOW)}

    def plain_label() -> Results:
        return {"label": torch.stack([step.patch_mask(c, t, HIGH, LOW)
                                      for c, t in zip(cams, tags, strict=True)])}

    def refined() -> Results:
        return {"label": refined_label(images, masked, tags, HIGH, LOW, par)}

    def plain_refined() -> Results:
        return {"label": torch.stack([
            plain.refined_label(*one, HIGH, LOW, par.dilations, par.iterations)
            for one in zip(images, masked, tags, strict=True)])}

    return [Kernel("label map", label, plain_label),
            Kernel("refined labels", refined, plain_refined)]


def run(classes: str, patches: int, batch: int, rounds: int, device: str, as_json: bool) -> None:
    """Measure and print."""
    with torch.no_grad():
        lines, where = measure(lambda count, on: kernels(count, batch, patches, on), classes,
                               rounds, device)
    about = {"device": str(where), "pixels": PATCH * patches, "batch": batch, "rounds": rounds}
    show_tables("labels", {"lines": lines}, about, NOTES, as_json)
