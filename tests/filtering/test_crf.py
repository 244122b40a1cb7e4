"""The CRF engines against each other and against the mean-field equations."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

from more.errors import UserError
from more.filtering import crf
from more.filtering.crf import refine, resolve_engine
from more.filtering.exact import ExactGaussian
from more.filtering.mean_field import mean_field
from more.filtering.parameters import FINEST, CRFParams
from tests.refinement.sets import smooth_maps, textured


def scene(labels: int, height: int, width: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    maps = smooth_maps(rng, labels, height, width).astype(np.float32)
    return textured(rng, height, width), maps / maps.sum(0)


@pytest.mark.parametrize("labels, seed", [(2, 0), (5, 1)])
def test_lattice_and_pydensecrf_agree(labels, seed):
    pytest.importorskip("pydensecrf")
    image, probs = scene(labels, 120, 160, seed)
    ours, theirs = (refine(image, probs, CRFParams(), engine)
                    for engine in ("lattice", "pydensecrf"))
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.999
    assert np.abs(ours - theirs).mean() < 1e-4
    assert (theirs.argmax(0) != probs.argmax(0)).mean() > 0.005  # the CRF did something


def test_lattice_is_near_the_exact_mean_field():
    image, probs = scene(3, 28, 32)
    ours, exact = (refine(image, probs, CRFParams(), engine) for engine in ("lattice", "exact"))
    # Single pixels may flip altogether, so only means say something.
    assert (ours.argmax(0) == exact.argmax(0)).mean() > 0.95
    assert np.abs(ours - exact).mean() < 0.03


def test_one_step_is_the_mean_field_equation():
    image, probs = scene(3, 9, 11)
    params = CRFParams(1, 2.0, 3.0, 10.0, 20.0, 4.0)
    q = torch.from_numpy(refine(image, probs, params, "exact")).flatten(1)
    u = torch.from_numpy(probs).clamp(1e-5, 1).log().flatten(1)
    place = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij"), -1)
    place, colour = place.view(-1, 2), torch.from_numpy(image).float().view(-1, 3)
    total = u
    for features, weight in ((place / 2, 3), (torch.cat([place / 10, colour / 20], 1), 4)):
        kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        scale = kernel.sum(1).rsqrt()
        total = total + weight * (u.softmax(0) @ (scale[:, None] * kernel * scale))
    torch.testing.assert_close(q, total.softmax(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", [None, ExactGaussian])
def test_a_batch_equals_its_images(engine):
    scenes = [scene(3, 18, 20, seed) for seed in range(3)]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in scenes])
    probs = torch.stack([torch.from_numpy(maps) for _, maps in scenes])
    extra = () if engine is None else (engine,)
    together = mean_field(images, probs, CRFParams(), *extra)
    for i in range(3):
        alone = mean_field(images[i:i + 1], probs[i:i + 1], CRFParams(), *extra)
        if engine is None:
            assert torch.equal(together[i], alone[0])
        torch.testing.assert_close(together[i], alone[0])  # matrix products may block otherwise


@pytest.mark.parametrize("engine", ["auto", "lattice"])
def test_form_of_the_result(engine):
    image, probs = scene(4, 31, 23)
    before = image.copy(), probs.copy()
    q = refine(image[:, ::-1], probs[:, :, ::-1], CRFParams(iterations=2), engine)
    assert q.shape == probs.shape and q.dtype == np.float32
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    assert (image == before[0]).all() and (probs == before[1]).all()


@pytest.mark.parametrize("engine", ["auto", "lattice"])
def test_impossible_labels_and_a_single_label(engine):
    image, _ = scene(2, 20, 20)
    probs = np.zeros((2, 20, 20), np.float32)
    probs[0] = 1
    assert (refine(image, probs, CRFParams(), engine).argmax(0) == 0).all()
    assert (refine(image, probs[:1], CRFParams(), engine) == 1).all()


def test_zero_iterations_give_the_normalised_input():
    image, probs = scene(3, 12, 13)
    for engine in ("auto", "lattice"):
        q = refine(image, probs, CRFParams(iterations=0), engine)
        np.testing.assert_allclose(q, probs, atol=1e-5)


@pytest.mark.parametrize("engine", ["auto", "lattice"])
def test_probabilities_are_clipped_at_1e_5_and_1(engine):
    image, _ = scene(2, 4, 5)
    probs = np.stack([np.full((4, 5), 3.0), np.zeros((4, 5))]).astype(np.float32)
    q = refine(image, probs, CRFParams(iterations=0), engine)
    np.testing.assert_allclose(q[1], 1e-5 / (1 + 1e-5), rtol=1e-3)


@pytest.mark.parametrize("field, value", [
    ("iterations", -1), ("iterations", 2.5), ("bilateral_rgb", 0), ("gaussian_xy", -1),
    ("bilateral_compat", float("nan")), ("gaussian_compat", float("inf"))])
def test_impossible_parameters_are_refused(field, value):
    with pytest.raises(UserError, match=f"crf.{field}"):
        CRFParams(**{field: value})


@pytest.mark.parametrize("field", ["gaussian_xy", "bilateral_xy", "bilateral_rgb"])
def test_a_deviation_so_fine_that_an_engine_would_crash_is_refused(field):
    """pydensecrf dies of a segmentation fault at 1e-8, and the image is lost twice."""
    for value in (1e-8, 0.099):
        with pytest.raises(UserError, match=f"crf.{field} is") as caught:
            CRFParams(**{field: value})
        assert f"at least {FINEST}" in caught.value.fix


@pytest.mark.parametrize("engine", ["fast", "pydensecrf", "lattice"])
@pytest.mark.parametrize("field", ["gaussian_xy", "bilateral_xy", "bilateral_rgb"])
def test_every_engine_takes_the_finest_deviation(field, engine):
    if engine != "lattice":
        pytest.importorskip({"fast": "numba"}.get(engine, engine))
    image, probs = scene(2, 24, 30)
    q = refine(image, probs, CRFParams(iterations=2, **{field: FINEST}), engine)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-4)


def test_whole_and_decimal_parameters_are_the_same():
    assert repr(CRFParams(bilateral_xy=67)) == repr(CRFParams(bilateral_xy=67.0))


def test_bad_input_is_refused():
    image, probs = scene(2, 10, 12)
    for bad in ((image.astype(np.float32), probs), (image[..., 0], probs),
                (image, probs[:, :5]), (image, probs[:0]), (image, np.full_like(probs, np.nan))):
        with pytest.raises(ValueError):
            refine(*bad, CRFParams())
    with pytest.raises(UserError, match="unknown CRF engine"):
        refine(image, probs, CRFParams(), "cuda")


@pytest.mark.parametrize("missing, serves", [
    ([], "fast"), (["more.filtering.fast"], "pydensecrf"),
    (["more.filtering.fast", "pydensecrf"], "lattice"), (["pydensecrf"], "fast")])
def test_the_next_engine_serves_and_says_why(monkeypatch, missing, serves):
    pytest.importorskip("numba"), pytest.importorskip("pydensecrf")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith(tuple(missing)):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    crf.available_engine.cache_clear()
    try:
        name, reason = crf.available_engine()
        assert name == resolve_engine("auto") == serves
    finally:
        crf.available_engine.cache_clear()
    for module in missing if serves != "fast" else []:
        assert module in reason
    for module, engine in (("more.filtering.fast", "fast"), ("pydensecrf", "pydensecrf")):
        if module in missing:
            with pytest.raises(UserError, match=f"No module named '{module}"):
                resolve_engine(engine)
