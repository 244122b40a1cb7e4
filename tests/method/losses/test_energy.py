"""The dense energy: value by plain sums, its own backward by finite differences."""

from functools import partial

import pytest
import torch

from more.filtering.bilateral import bilateral_filter
from more.filtering.exact import ExactGaussian
from more.method.losses.energy import GatedEnergy, dense_energy, energy_filter

exact = partial(bilateral_filter, engine=ExactGaussian)


def case(batch=2, classes=3, size=(12, 10)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * 2
    images = torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64) * 255
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    labels[torch.rand(batch, *size, generator=generator) < 0.3] = 255
    return logits, images, labels


def kernel(images, sigma_xy, sigma_rgb):
    """The dense matrix A of one image [3, h, w]."""
    _, height, width = images.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y]).to(images.dtype) / sigma_xy
    features = torch.cat([places, images / sigma_rgb]).flatten(1).T
    return torch.exp(-0.5 * torch.cdist(features, features) ** 2)


def test_value_by_plain_sums():
    logits, images, labels = case()
    box = torch.tensor([[0, 12, 0, 10], [2, 9, 1, 8]])
    energy = dense_energy(logits, images, labels, box, 0.5, 15.0, 20.0, 1.0, exact)
    total = 0.0
    for b in range(2):
        p = logits[b].softmax(0)
        inside = torch.zeros(12, 10, dtype=p.dtype)
        inside[box[b, 0] : box[b, 1], box[b, 2] : box[b, 3]] = 1
        gate = (inside - p.amax(0)).clamp(min=0)
        gate[labels[b] == 255] = 1
        s = (p * inside).flatten(1)
        total += ((s @ kernel(images[b], 20.0, 15.0)) * s * gate.flatten()).sum()
    assert energy.item() == pytest.approx(-0.5 / 2 * total.item(), rel=1e-6)


def test_sizes_are_halved_with_nearest_neighbours_for_image_and_label():
    logits, images, labels = case()
    seen = {}

    def spy(small, shares, sigma_xy, sigma_rgb):
        seen.update(images=small, shares=shares, sigmas=(sigma_xy, sigma_rgb))
        return torch.ones_like(shares)

    energy = dense_energy(logits, images, labels, weight=1.0, filter=spy)
    assert torch.equal(seen["images"], images[:, :, ::2, ::2])
    assert seen["sigmas"] == (50.0, 15.0)
    p = torch.nn.functional.interpolate(logits.softmax(1), size=(6, 5), mode="bilinear")
    gate = torch.where(labels[:, ::2, ::2] == 255, 1.0, (1 - p.amax(1)).clamp(min=0))
    assert energy.item() == pytest.approx(-(p.sum(1) * gate).sum().item() / 2)


def test_backward_is_that_of_the_symmetric_form_with_a_constant_gate():
    """Where A and the gate make a symmetric form, the true derivative is the release's."""
    _, images, _ = case(1, 3, (5, 4))
    a = kernel(images[0], 3.0, 60.0)
    inside = torch.ones(1, 1, 5, 4, dtype=torch.float64)
    inside[..., 0] = 0

    def affinity(shares):
        return (shares.flatten(2) @ a).view_as(shares)

    p = torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)

    def value(p, gate):
        return GatedEnergy.apply(p, torch.full_like(inside, gate), inside, 0.7, affinity)

    assert torch.autograd.gradcheck(partial(value, gate=0.6), p)


def test_backward_by_finite_differences_of_the_symmetrised_form():
    """In general it is the derivative of s·(A s₀)⊙gate taken twice, s₀ and the gate held."""
    logits, images, labels = case(1)
    p = logits.softmax(1).requires_grad_()
    gate = torch.rand(1, 1, 12, 10, dtype=torch.float64)
    inside = torch.ones_like(gate)
    a = kernel(images[0], 4.0, 40.0)

    def affinity(shares):
        return (shares.flatten(2) @ a).view_as(shares)

    value = GatedEnergy.apply(p, gate, inside, 0.3, affinity)
    found = torch.autograd.grad(value, p)[0]
    held = affinity(p.detach())

    def partial_energy(q):
        return -0.3 * 2 * (q * held * gate).sum()

    step = 1e-5
    for place in [(0, 0, 0, 0), (0, 2, 5, 7), (0, 1, 11, 9)]:
        q = p.detach().clone()
        q[place] += step
        upper = partial_energy(q)
        q[place] -= 2 * step
        slope = (upper - partial_energy(q)) / (2 * step)
        assert found[place].item() == pytest.approx(slope.item(), rel=1e-6)


def test_one_filter_call_serves_value_and_gradient():
    logits, images, labels = case()
    calls = []

    def counting(*arguments):
        calls.append(1)
        return exact(*arguments)

    logits.requires_grad_()
    dense_energy(logits, images, labels, filter=counting, weight=1.0).backward()
    assert len(calls) == 1 and torch.isfinite(logits.grad).all() and logits.grad.any()


def test_batch_is_the_mean_of_single_images():
    logits, images, labels = case()
    whole = dense_energy(logits, images, labels, weight=1.0)
    single = [dense_energy(logits[i : i + 1], images[i : i + 1], labels[i : i + 1], weight=1.0)
              for i in range(2)]
    torch.testing.assert_close(whole, torch.stack(single).mean())


def test_extreme_cases_are_finite_and_never_positive():
    logits, images, labels = case()
    for x, label in ((logits * 1e4, labels * 0), (logits, torch.full_like(labels, 255))):
        x = x.float().requires_grad_()
        loss = dense_energy(x, images.float(), label, weight=1.0)
        loss.backward()
        assert loss <= 0 and torch.isfinite(loss) and torch.isfinite(x.grad).all()
    empty = torch.zeros(2, 4, dtype=torch.long)
    assert dense_energy(logits, images, labels * 0, empty, weight=1.0) == 0


def test_the_filter_by_attention_is_near_the_lattice():
    """Energy and gradient of smooth images: the weight of the released recipe stays right."""
    generator = torch.Generator().manual_seed(0)

    def draw(factor, *shape):
        coarse = torch.rand(*shape, generator=generator) * factor
        return torch.nn.functional.interpolate(coarse, (96, 112), mode="bilinear")

    images, logits = draw(60, 2, 3, 4, 5).round(), draw(9, 2, 5, 6, 7)
    labels = torch.full((2, 96, 112), 255)
    labels[:, :48] = 1
    energies, gradients = [], []
    for name in ("lattice", "attention"):
        x = logits.clone().requires_grad_()
        energies.append(dense_energy(x, images, labels, filter=energy_filter(name)))
        gradients.append(torch.autograd.grad(energies[-1], x)[0].flatten())
    assert energies[1].item() == pytest.approx(energies[0].item(), rel=0.07)
    assert energies[1] != energies[0]
    lattice, attention = gradients
    assert torch.cosine_similarity(lattice, attention, 0) > 0.98
    assert 0.9 < attention.norm() / lattice.norm() < 1.1


def test_names_of_filters():
    logits, images, labels = case()
    assert dense_energy(logits, images, labels, filter=energy_filter("lattice")) == dense_energy(
        logits, images, labels)
    with pytest.raises(ValueError, match="'lattice' or 'attention', not 'exact'"):
        energy_filter("exact")
