"""One lattice serves the energy loss and the CRF, and each builds it no oftener than needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from more.filtering import crf
from more.filtering.bilateral import bilateral_features, bilateral_filter
from more.filtering.parameters import CRFParams
from more.filtering.permutohedral import PermutohedralLattice
from more.method.losses.energy import dense_energy
from tests.refinement.sets import smooth_maps, textured


@pytest.fixture
def lattices(monkeypatch):
    """Every lattice that is built, with the shape of its features and the filtered maps."""
    built = []
    true_init, true_filter = PermutohedralLattice.__init__, PermutohedralLattice.filter

    def init(self, features):
        built.append(self)
        self.shape, self.filtered = tuple(features.shape), []
        true_init(self, features)

    def filter(self, values):
        self.filtered.append(values.shape[1])
        return true_filter(self, values)

    monkeypatch.setattr(PermutohedralLattice, "__init__", init)
    monkeypatch.setattr(PermutohedralLattice, "filter", filter)
    return built


def test_the_energy_builds_one_lattice_a_batch_and_filters_once(lattices):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(np.stack([textured(rng, 24, 20) for _ in range(3)]))
    images = images.permute(0, 3, 1, 2).float()
    logits = torch.randn(3, 5, 24, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, 24, 20, dtype=torch.long)
    dense_energy(logits.requires_grad_(), images, labels, filter=bilateral_filter).backward()
    (lattice,) = lattices
    assert lattice.shape == (3, 12 * 10, 5) and lattice.filtered == [5]


def test_on_a_cpu_the_energy_builds_one_fast_lattice_an_image(lattices, monkeypatch):
    fast = pytest.importorskip("more.filtering.fast")
    passes = pytest.importorskip("more.filtering.fast.passes")
    fast.load()  # compiling builds lattices of its own, which are not to be counted
    built, build = [], passes.build
    monkeypatch.setattr(passes, "build",
                        lambda *given: built.append(given[0].shape) or build(*given))
    rng = np.random.default_rng(0)
    images = torch.from_numpy(np.stack([textured(rng, 24, 20) for _ in range(3)]))
    logits = torch.randn(3, 5, 24, 20, generator=torch.Generator().manual_seed(0))
    dense_energy(logits.requires_grad_(), images.permute(0, 3, 1, 2).float(),
                 torch.zeros(3, 24, 20, dtype=torch.long)).backward()
    assert built == [(12, 10, 3)] * 3 and not lattices


def test_the_gradient_is_what_the_lattice_gives(lattices):
    rng = np.random.default_rng(1)
    images = torch.from_numpy(textured(rng, 16, 18)).permute(2, 0, 1)[None].float()
    labels = torch.full((1, 16, 18), 255)  # the gate is 1 everywhere
    logits = torch.randn(1, 4, 16, 18, generator=torch.Generator().manual_seed(1))
    energy = dense_energy(logits, images, labels, weight=1.0, sigma_xy=40.0, scale=1.0)
    shares = logits.softmax(1)
    kernel = PermutohedralLattice(bilateral_features(images, 40.0, 15.0))
    expected = -(shares * kernel.filter(shares.flatten(2)).view_as(shares)).sum()
    torch.testing.assert_close(energy, expected)
    assert type(lattices[0]) is type(kernel) and torch.equal(lattices[0].codes, kernel.codes)


@pytest.mark.parametrize("iterations", [1, 4])
def test_the_crf_builds_one_lattice_a_term_and_uses_it_in_all_iterations(lattices, iterations):
    rng = np.random.default_rng(2)
    images = [textured(rng, 20, 22) for _ in range(2)]
    probs = [smooth_maps(rng, 3, 20, 22).astype(np.float32) for _ in range(2)]
    crf.refine_batch(images, probs, CRFParams(iterations), "lattice")
    near, similar = lattices
    assert near.shape == (1, 440, 2) and near.filtered == [1] + [6] * iterations
    assert similar.shape == (2, 440, 5) and similar.filtered == [1] + [3] * iterations
