"""The loss terms and the graph's layer, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from more.bench.measure import show_tables
from more.method.gcr import GraphCategoryRepresentation
from more.method.labels import cam_to_label
from more.method.losses.contrast import confident_region_loss, patch_contrast_loss
from more.method.losses.ure import random_keys, select_uncertain, uncertain_region_loss
from tests.oracles import losses as plain
from tests.oracles import step
from tests.research.kernels import CPU, NOTES, Kernel, Line, Results, measure

PRESENT = (1, 2, 2, 3)  # classes in the images of a batch, again and again
HIGH, LOW, TEMPERATURE = 0.7, 0.25, 0.5


@dataclass
class Drawn:
    """Random inputs, one seed: tokens `[B, C, D]`, patches as rows `[B, N, D]`, mask, tags."""

    tokens: Tensor
    rows: Tensor
    mask: Tensor
    tags: Tensor
    keys: Tensor

    @property
    def patches(self) -> Tensor:
        """`[B, D, h, w]`, a view as the network makes it."""
        return self.rows.transpose(1, 2).unflatten(2, tuple(self.mask.shape[-2:]))

    def results(self, loss: Tensor) -> Results:
        """Value and gradients of tokens and patches."""
        given = [x for x in (self.tokens, self.rows) if x.requires_grad]
        found = torch.autograd.grad(loss, given, allow_unused=True)
        return {"loss": loss.detach(), **{f"gradient {place}": gradient
                                         for place, gradient in enumerate(found)
                                         if gradient is not None}}


def draw_tags(classes: int, batch: int, generator: torch.Generator) -> Tensor:
    """`[B, C]` with 1, 2, 2, 3 … present classes."""
    tags = torch.zeros(batch, classes)
    for image in range(batch):
        count = min(PRESENT[image % len(PRESENT)], classes)
        tags[image, torch.randperm(classes, generator=generator)[:count]] = 1
    return tags


def draw_cams(classes: int, batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth maps `[B, C, side, side]` in 0..1, as CAMs are."""
    coarse = torch.rand(batch, classes, 7, 7, generator=generator)
    maps = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(min=0)
    return (maps - 0.2).clamp(min=0) / 0.8


def draw(classes: int, batch: int, patches: int, dim: int, device: torch.device = CPU) -> Drawn:
    """Inputs for the losses; the same numbers for the same arguments on any device."""
    generator = torch.Generator().manual_seed(0)
    tags = draw_tags(classes, batch, generator)
    cams = draw_cams(classes, batch, patches, generator)
    tokens, rows = (torch.randn(batch, count, dim, generator=generator).to(device)
                    for count in (classes, patches**2))
    mask, keys = cam_to_label(cams, tags, HIGH, LOW), random_keys(batch, (patches,) * 2, generator)
    return Drawn(tokens.requires_grad_(), rows.requires_grad_(), mask.to(device), tags.to(device),
                 keys.to(device))


def draw_probe(drawn: Drawn) -> Tensor:
    """Factors `[B, C, D]` that make a loss of the graph's tokens."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(drawn.tokens.shape, generator=generator, device="cpu").to(drawn.tokens)


def our_losses(drawn: Drawn, graph: GraphCategoryRepresentation) -> dict[str, object]:
    """Callables by name that return value and gradients."""
    d, probe = drawn, draw_probe(drawn)

    def ure() -> Results:
        places = select_uncertain(d.mask, d.keys)
        return d.results(uncertain_region_loss(d.tokens, d.patches, d.tags, *places))

    def cre() -> Results:
        return d.results(confident_region_loss(d.tokens, d.patches, d.mask, d.tags, TEMPERATURE))

    def ptc() -> Results:
        return d.results(patch_contrast_loss(d.patches, d.mask))

    def gcr() -> Results:
        return with_weights(d, graph, (graph(d.tokens, d.rows) * probe).sum())

    return {"URE": ure, "CRE": cre, "PTC": ptc, "GCR": gcr}


def with_weights(drawn: Drawn, graph: GraphCategoryRepresentation, loss: Tensor) -> Results:
    """Value and gradients of tokens and of the layer's weights."""
    names, weights = zip(*graph.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [drawn.tokens, *weights])
    return {"loss": loss.detach(), **dict(zip(("tokens", *names), found, strict=True))}


def kernels(classes: int, batch: int, patches: int, dim: int, device: torch.device = CPU,
            by_position: bool = False) -> list[Kernel]:
    """The four of them with their plain formulas.

    Args:
        by_position: URE and CRE with formulas that take patches one after another; otherwise
            sums over an image's patches are made at once. (PTC keeps its matrices: pairs
            one by one take minutes.)
    """
    d = draw(classes, batch, patches, dim, device)
    torch.manual_seed(0)
    graph = GraphCategoryRepresentation(dim).to(device)
    ours, probe = our_losses(d, graph), draw_probe(d)
    uncertain, confident = ((plain.uncertain_by_pair, plain.confident_by_position) if by_position
                            else (plain.uncertain_by_class, plain.confident))

    def ure() -> Results:
        places = [step.uncertain_positions(m, k) for m, k in zip(d.mask, d.keys, strict=True)]
        return d.results(uncertain(d.tokens, d.patches, d.tags, places))

    def cre() -> Results:
        return d.results(confident(d.tokens, d.patches, d.mask, d.tags, TEMPERATURE))

    def ptc() -> Results:
        return d.results(step.contrast(d.patches, d.mask))

    def gcr() -> Results:
        return with_weights(d, graph, (step.graph_tokens(graph, d.tokens, d.patches) * probe).sum())

    # The graph's softmax over products of sums makes float32 itself 1e-4 of float64, and a GPU
    # sums in another order.
    graph_gap = 1e-3 if device.type == "cuda" else 3e-4
    return [Kernel(name, ours[name], work, graph_gap if name == "GCR" else 1e-4)
            for name, work in (("URE", ure), ("CRE", cre), ("PTC", ptc), ("GCR", gcr))]


def run(classes: str, patches: int, batch: int, dim: int, rounds: int, growth: bool,
        plot: Path | None, device: str, as_json: bool, by_position: bool = False) -> None:
    """Measure and print."""
    if growth:
        from tests.research.growth import show_growth

        return show_growth(batch, dim, rounds, plot, device, as_json)
    lines, where = measure(lambda count, on: kernels(count, batch, patches, dim, on, by_position),
                           classes, rounds, device)
    first = lines[0]["classes"]
    uncertain = float((draw(first, batch, patches, 1).mask == 255).float().mean())
    about: Line = {"device": str(where), "patches": patches, "batch": batch, "dim": dim,
                   "rounds": rounds, "uncertain patches": uncertain,
                   "plain formulas": "by position" if by_position else "by image and class"}
    show_tables("losses", {"lines": lines}, about, NOTES, as_json)
