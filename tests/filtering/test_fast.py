"""The fast CRF engine against pydensecrf, the lattice in torch and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more.filtering import crf
from more.filtering.bilateral import bilateral_features
from more.filtering.crf import refine
from more.filtering.parameters import CRFParams
from more.filtering.permutohedral import PermutohedralLattice
from tests.filtering.test_crf import scene
from tests.refinement.sets import textured

fast = pytest.importorskip("more.filtering.fast")
lattice = pytest.importorskip("more.filtering.fast.lattice")
passes = pytest.importorskip("more.filtering.fast.passes")
BILATERAL = CRFParams(gaussian_compat=0)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    fast.load()


def noise(labels, height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.random((labels, height, width), np.float32)


@pytest.mark.parametrize("labels, seed", [(2, 0), (3, 1), (5, 2), (9, 3), (21, 4)])
def test_labels_are_those_of_pydensecrf(labels, seed):
    pytest.importorskip("pydensecrf")
    image, probs = scene(labels, 120, 160, seed)
    ours, theirs = (refine(image, probs, CRFParams(), engine) for engine in ("fast", "pydensecrf"))
    # These noisy images show the place kernel, a true Gaussian here, more than photographs do.
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.997
    assert np.abs(ours - theirs).mean() < 2e-3
    assert (theirs.argmax(0) != probs.argmax(0)).mean() > 0.005  # the CRF did something


@pytest.mark.parametrize("labels", [2, 3, 4, 6, 11])
def test_without_the_place_kernel_it_is_the_lattice(labels):
    image, probs = scene(labels, 70, 90)
    ours, theirs = (refine(image, probs, BILATERAL, engine) for engine in ("fast", "lattice"))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("params", [
    CRFParams(1, 2.0, 3.0, 10.0, 20.0, 4.0), CRFParams(3, 6.0, 0.5, 30.0, 13.0, 10.0),
    CRFParams(2, 0.3, 1.0, 5.0, 1.0, 0.0), CRFParams(4, 40.0, 2.0, 67.0, 3.0, 4.0)])
def test_every_parameter_counts_as_in_the_other_engines(params):
    image, probs = scene(3, 40, 50)
    ours, theirs = (refine(image, probs, params, engine) for engine in ("fast", "lattice"))
    assert np.abs(ours - theirs).mean() < 0.01
    assert (ours.argmax(0) == theirs.argmax(0)).mean() > 0.98


def test_the_place_kernel_is_the_exact_gaussian():
    image, probs = scene(4, 13, 17)
    params = CRFParams(1, 1.7, 3.0, 67.0, 3.0, 0.0)
    ours, exact = (refine(image, probs, params, engine) for engine in ("fast", "exact"))
    np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.parametrize("weight", [1e2, 1e4])
def test_strong_terms_do_not_overflow(weight):
    image, probs = scene(5, 20, 24)
    params = CRFParams(gaussian_compat=weight, bilateral_compat=weight)
    ours, theirs = (refine(image, probs, params, engine) for engine in ("fast", "lattice"))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() > 0.95


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(0, 99))
def test_any_size_and_number_of_labels(height, width, labels, seed):
    image, probs = noise(labels, height, width, seed)
    ours = refine(image, probs, BILATERAL, "fast")
    assert ours.dtype == np.float32 and ours.shape == probs.shape
    np.testing.assert_allclose(ours, refine(image, probs, BILATERAL, "lattice"), atol=2e-3)


def test_as_many_labels_as_a_mask_can_hold():
    image, probs = noise(255, 9, 11)
    probs[200] += 3
    ours = refine(image, probs, CRFParams(), "fast")
    assert (ours.argmax(0) == 200).all()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)


def test_the_same_bits_every_time_whatever_came_before():
    image, probs = scene(3, 60, 80)
    alone = refine(image, probs, CRFParams(), "fast")
    for labels, height, width in ((7, 90, 50), (2, 5, 300)):
        refine(*noise(labels, height, width), CRFParams(), "fast")
        assert (refine(image, probs, CRFParams(), "fast") == alone).all()


def test_input_that_cannot_be_written_or_is_turned_round():
    image, probs = scene(3, 31, 23)
    plain = refine(image.copy(), probs.copy(), CRFParams(), "fast")
    for array in (image, probs):
        array.flags.writeable = False
    assert (refine(image, probs, CRFParams(), "fast") == plain).all()
    turned = refine(image[:, ::-1], probs[:, :, ::-1].astype(np.float64), CRFParams(), "fast")
    same = refine(np.ascontiguousarray(image[:, ::-1]),
                  np.ascontiguousarray(probs[:, :, ::-1]), CRFParams(), "fast")
    assert (turned == same).all()


def test_points_and_neighbours_are_those_of_the_lattice_in_torch():
    image, _ = scene(2, 37, 53)
    ours = lattice.build(image, 30.0, 9.0)
    theirs = PermutohedralLattice(bilateral_features(
        torch.from_numpy(image).permute(2, 0, 1)[None], 30.0, 9.0))
    assert ours.points == theirs.points
    np.testing.assert_allclose(ours.weights.sum(1), 1, atol=1e-5)
    edges = sum(int((ours.chains[a:b] >= 0).sum())
                for a, b in zip(ours.starts, ours.starts[1:], strict=False))
    neighbours = theirs._neighbours[:, :, 1] < theirs.points
    assert edges == int(neighbours.sum())


def test_an_image_of_noise_needs_a_larger_table():
    """Every pixel has corners of its own, more than there is room for at first."""
    image, probs = noise(2, 60, 60)
    assert lattice.build(image, 67.0, 0.5).points > lattice._first_room(60, 60)
    params = CRFParams(gaussian_compat=0, bilateral_rgb=0.5)
    ours, theirs = (refine(image, probs, params, engine) for engine in ("fast", "lattice"))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_deviations_too_small_for_the_codes_go_to_the_lattice(capfd):
    crf._announce_substitute.cache_clear()
    image, probs = noise(2, 60, 60)
    params = CRFParams(iterations=1, bilateral_xy=0.1, bilateral_rgb=0.1)
    ours, theirs = (refine(image, probs, params, engine) for engine in ("fast", "lattice"))
    assert (ours == theirs).all()
    assert "exceed 64 bits; engine lattice takes such images" in capfd.readouterr().err
    finer = CRFParams(iterations=1)  # such values are refused; and neither engine can do this
    for field in ("bilateral_xy", "bilateral_rgb"):
        object.__setattr__(finer, field, 1e-3)
    with pytest.raises(ValueError, match="too many lattice cells"):
        refine(image, probs, finer, "fast")


def test_forty_megapixels_have_room_for_their_codes():
    grid = lattice.make_grid(7360, 5440, 67.0, 3.0)
    assert grid.bits + lattice._first_room(7360, 5440).bit_length() <= 64


@pytest.mark.parametrize("channels, shape", [(1, (1, 1)), (2, (1, 2)), (3, (1, 4)), (5, (1, 8)),
                                             (8, (1, 8)), (20, (3, 8))])
def test_channels_lie_in_vectors(channels, shape):
    values = passes.point_values(7, channels)
    assert (values.shape[0], values.shape[2]) == shape and values.shape[1] == 7


def test_blur_is_the_formula():
    """Along every axis: new = old + ½ (before + after), points without neighbours as they are."""
    image = textured(np.random.default_rng(3), 12, 15)
    made = lattice.build(image, 10.0, 30.0)
    values = passes.point_values(made.points, 3)
    values[:] = np.random.default_rng(0).random(values.shape)
    expected = values[0].copy()
    for axis in range(6):
        chain = made.chains[made.starts[axis]:made.starts[axis + 1]]
        old = expected.copy()
        for here, after in zip(chain, chain[1:], strict=False):
            if here >= 0:
                after = after if after >= 0 else ~after
                expected[here] += 0.5 * old[after]
                expected[after] += 0.5 * old[here]
    passes.blur(values, made.chains, made.starts)
    np.testing.assert_allclose(values[0], expected, rtol=1e-5)


@pytest.mark.parametrize("labels, size, colours", [
    (2, (12, 17), 1.0), (7, (31, 20), 0.3), (21, (40, 40), 1.7)])
def test_the_filter_alone_is_that_of_the_lattice_in_torch(labels, size, colours):
    """Batches, any number of maps, colours beyond 0..255 and between whole numbers."""
    from more.filtering.bilateral import bilateral_filter
    from more.method.losses.energy import lattice_filter

    generator = torch.Generator().manual_seed(labels)
    images = 255 * colours * torch.rand(3, 3, *size, generator=generator) - 20
    values = torch.randn(3, labels, *size, generator=generator)
    ours, theirs = (made(images, values, 8.0, 40.0) for made in (lattice_filter, bilateral_filter))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for i in range(3):  # a batch gives bit by bit what its images give alone
        assert torch.equal(ours[i], lattice_filter(images[i:i + 1], values[i:i + 1], 8.0, 40.0)[0])


def test_the_filter_leaves_to_torch_what_it_cannot_do():
    from more.method.losses.energy import lattice_filter

    images, values = torch.rand(1, 3, 9, 9) * 255, torch.rand(1, 2, 9, 9)
    assert lattice_filter(images, values.double(), 5.0, 10.0).dtype == torch.float64
    with pytest.raises(ValueError, match="not finite"):
        lattice_filter(images * float("nan"), values, 5.0, 10.0)
    with pytest.raises(ValueError, match="too many lattice cells"):
        lattice_filter(images, values, 1e-3, 1e-3)
