"""The lattice against a plain oracle and the exact Gaussian, and its algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from more.filtering.bilateral import bilateral_features, bilateral_filter
from more.filtering.exact import ExactGaussian
from more.filtering.permutohedral import PermutohedralLattice
from tests.claimed_gpu import OnGpu, claimed_gpu
from tests.filtering.oracle import lattice_filter
from tests.research.launches import Launches


def random(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(batch: int, height: int = 20, width: int = 18, seed: int = 0) -> torch.Tensor:
    """Smooth colourful images in 0..255 with whole grey levels."""
    coarse = random(batch, 3, 4, 5, seed=seed) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").round()


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_equals_the_plain_lattice(d):
    features = random(2, 60, d, seed=d, dtype=torch.float64) * 3 - 1
    values = random(2, 4, 60, seed=9, dtype=torch.float64)
    actual = PermutohedralLattice(features).filter(values)
    for b in range(2):
        expected = lattice_filter(features[b].numpy(), values[b].numpy())
        np.testing.assert_allclose(actual[b].numpy(), expected, atol=1e-9)


def test_a_batch_gives_bit_by_bit_what_its_images_give_alone():
    images, values = pictures(3), random(3, 7, 20, 18)
    together = bilateral_filter(images, values, 50, 15)
    alone = [bilateral_filter(images[i:i + 1], values[i:i + 1], 50, 15) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_a_part_of_a_lattice_is_bit_by_bit_that_of_its_images():
    images, values = pictures(4), random(4, 7, 360)
    lattice = PermutohedralLattice(bilateral_features(images, 50, 15))
    assert lattice.part(slice(0, 9)) is lattice
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        part = lattice.part(rows)
        alone = PermutohedralLattice(bilateral_features(images[rows], 50, 15))
        assert part.points == alone.points
        assert torch.equal(part.filter(values[rows]), alone.filter(values[rows]))
        assert torch.equal(part.part(slice(0, 1)).filter(values[rows][:1]),
                           alone.part(slice(0, 1)).filter(values[rows][:1]))
    assert torch.equal(lattice.filter(values)[1:3], lattice.part(slice(1, 3)).filter(values[1:3]))


@pytest.mark.parametrize("spread", [1, 40])
def test_on_a_gpu_the_lattice_is_that_of_the_cpu_and_is_waited_for_once(spread):
    features = bilateral_features(pictures(2), 50, 15) * spread
    values, here = random(2, 3, 360), PermutohedralLattice(features)
    with claimed_gpu():
        PermutohedralLattice(OnGpu(features)).filter(OnGpu(values))
        count = Launches()
        with count:
            there = PermutohedralLattice(OnGpu(features))
            found = there.filter(OnGpu(values))
        assert dict(count.waits) == {"copy to the CPU": 1} and not count.uploads
        assert sum(count.operations.values()) <= 105  # 240 for two images
        assert there.points == here.points and torch.equal(found.cpu(), here.filter(values))
        assert torch.equal(there.part(slice(1, 2)).filter(OnGpu(values[1:])).cpu(), found.cpu()[1:])


@pytest.mark.parametrize("bad, message", [
    (float("nan"), "finite"), (float("inf"), "finite"), (2e6, "1e6"), (9e5, "standard deviations")])
def test_on_a_gpu_bad_features_are_refused_and_lead_nowhere(bad, message):
    features = random(1, 9, 5) * (1e5 if bad == 9e5 else 1)
    features[0, 3, 2] = bad
    with claimed_gpu(), pytest.raises(ValueError, match=message):
        PermutohedralLattice(OnGpu(features))


def test_deterministic():
    lattice = PermutohedralLattice(bilateral_features(pictures(2), 50, 15))
    again = PermutohedralLattice(bilateral_features(pictures(2), 50, 15))
    values = random(2, 3, 360)
    assert torch.equal(lattice.filter(values), again.filter(values))


def test_ratio_and_correlation_with_the_exact_gaussian():
    images, values = pictures(2), random(2, 4, 20, 18)
    lattice = bilateral_filter(images, values, 50, 15)
    exact = bilateral_filter(images, values, 50, 15, ExactGaussian)
    # The gain varies with the image's own density: method §4.9 lists 0.45 to 0.55.
    assert 0.4 < (lattice.sum() / exact.sum()).item() < 0.65
    assert torch.corrcoef(torch.stack([lattice.flatten(), exact.flatten()]))[0, 1] > 0.95


def test_linear():
    lattice = PermutohedralLattice(bilateral_features(pictures(1), 30, 12).double())
    a, b = random(1, 2, 360, seed=1), random(1, 2, 360, seed=2)
    a, b = a.double(), b.double()
    joint = lattice.filter(2 * a - 3 * b)
    torch.testing.assert_close(joint, 2 * lattice.filter(a) - 3 * lattice.filter(b))


def test_the_transpose_is_the_filter_with_the_blurs_in_reverse():
    lattice = PermutohedralLattice(bilateral_features(pictures(1), 50, 15).double())
    identity = torch.eye(360, dtype=torch.float64)[None]
    kernel = lattice.filter(identity)[0]
    lattice._neighbours = lattice._neighbours.flip(0)
    reverse = lattice.filter(identity)[0]
    assert (kernel >= 0).all() and not torch.allclose(kernel, reverse)
    torch.testing.assert_close(reverse, kernel.T)


def test_nearly_symmetric_on_positive_maps():
    lattice = PermutohedralLattice(bilateral_features(pictures(1, 40, 40), 50, 15).double())
    a, b = random(2, 1, 1, 1600, dtype=torch.float64)
    assert abs((a * lattice.filter(b)).sum() / (b * lattice.filter(a)).sum() - 1) < 5e-3


def test_permuting_the_values_permutes_the_result():
    lattice = PermutohedralLattice(bilateral_features(pictures(2), 50, 15))
    values, order = random(2, 5, 360), [3, 1, 4, 0, 2]
    assert torch.equal(lattice.filter(values)[:, order], lattice.filter(values[:, order]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_result_has_the_type_of_the_values(dtype):
    values = random(1, 2, 20, 18).to(dtype)
    out = bilateral_filter(pictures(1), values, 50, 15)
    expected = bilateral_filter(pictures(1), values.float(), 50, 15)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))


def test_autocast_does_not_lower_the_precision():
    images, values = pictures(1), random(1, 2, 20, 18)
    with torch.autocast("cpu", torch.bfloat16):
        inside = [bilateral_filter(images, values, 50, 15, engine)
                  for engine in (PermutohedralLattice, ExactGaussian)]
    for out, engine in zip(inside, (PermutohedralLattice, ExactGaussian), strict=True):
        assert torch.equal(out, bilateral_filter(images, values, 50, 15, engine))


def test_no_gradient_flows():
    values = random(1, 2, 20, 18).requires_grad_()
    assert not bilateral_filter(pictures(1), values, 50, 15).requires_grad


def test_one_pixel():
    image, values = torch.full((1, 3, 1, 1), 7.0), torch.full((1, 1, 1, 1), 2.0)
    assert torch.isfinite(bilateral_filter(image, values, 5, 5)).all()


@pytest.mark.parametrize("features", [torch.zeros(4, 5), torch.zeros(1, 4, 5, dtype=torch.long)])
def test_features_of_the_wrong_form_are_refused(features):
    for engine in (PermutohedralLattice, ExactGaussian):
        with pytest.raises(ValueError, match="features must be"):
            engine(features)


def test_values_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match="built for"):
        PermutohedralLattice(random(2, 9, 5)).filter(random(2, 1, 8))
    with pytest.raises(ValueError, match="differ"):
        bilateral_filter(pictures(2), random(1, 1, 20, 18), 5, 5)


@pytest.mark.parametrize("bad, message", [(float("nan"), "finite"), (float("inf"), "finite")])
def test_features_that_are_not_finite_are_refused(bad, message):
    features = random(1, 9, 5)
    features[0, 3, 2] = bad
    with pytest.raises(ValueError, match=message):
        PermutohedralLattice(features)


def test_too_many_cells_are_refused_instead_of_overflowing():
    with pytest.raises(ValueError, match="standard deviations"):
        PermutohedralLattice(random(1, 50, 5) * 1e5)
