"""The dense energy by both filters, value and gradient, building of the lattice included."""

from __future__ import annotations

import torch

from more.bench.measure import show_tables
from more.method.cam import resize
from more.method.labels import cam_to_label
from more.method.losses.energy import Filter, dense_energy, energy_filter
from tests.oracles import gaussian, lattice
from tests.research.kernels import CPU, NOTES, Kernel, Results, measure
from tests.research.losses import HIGH, LOW, draw_cams, draw_tags

PATCH = 8  # pixels of the energy's images per patch


def kernels(classes: int, batch: int, patches: int, device: torch.device = CPU) -> list[Kernel]:
    """The energy of background and `classes` classes: by the lattice and by attention.

    Attention is held against the plain sum over the keys that it takes, so that both compute the
    same; on a GPU it works in 16 bits.
    """
    generator, side = torch.Generator().manual_seed(0), PATCH * patches
    logits = 3 * torch.randn(batch, classes + 1, patches, patches, generator=generator)
    logits = resize(logits, (side, side)).to(device).requires_grad_()
    images = 255 * torch.rand(batch, 3, max(2, side // 8), max(2, side // 8), generator=generator)
    images = resize(images, (side, side))
    tags = draw_tags(classes, batch, generator)
    labels = cam_to_label(draw_cams(classes, batch, side, generator), tags, HIGH, LOW)
    images, labels = images.to(device), labels.to(device)

    def results(loss: torch.Tensor) -> Results:
        return {"energy": loss.detach(), "gradient": torch.autograd.grad(loss, logits)[0]}

    def energy(filter: Filter) -> Results:
        return results(dense_energy(logits, images, labels, filter=filter))

    return [Kernel("energy", lambda: energy(energy_filter("lattice")),
                   lambda: results(lattice.energy(logits, images, labels, 1e-7, 15.0, 100.0)),
                   tolerance=5e-4),
            Kernel("energy, attention", lambda: energy(energy_filter("attention")),
                   lambda: energy(gaussian.sampled_filter),
                   tolerance=5e-4 if device.type == "cpu" else 1e-2)]


def run(classes: str, patches: int, batch: int, rounds: int, device: str, as_json: bool) -> None:
    """Measure and print."""
    lines, where = measure(lambda count, on: kernels(count, batch, patches, on), classes, rounds,
                           device)
    about = {"device": str(where), "pixels": PATCH * patches, "batch": batch, "rounds": rounds}
    show_tables("filter", {"lines": lines}, about, NOTES, as_json)
