"""The Gaussian filter by attention: exact in full precision, near it in 16 bits, never N × N."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from more.filtering.bilateral import bilateral_features, bilateral_filter
from more.filtering.exact import ExactGaussian
from more.filtering.gaussian_attention import AttentionGaussian, attention_filter
from tests.claimed_gpu import OnGpu, claimed_gpu
from tests.filtering.test_permutohedral import pictures, random
from tests.oracles.gaussian import sampled_filter
from tests.refinement.sets import smooth_maps, textured
from tests.research.kernels import peak_bytes

HALVES = [torch.float16, torch.bfloat16]


def scene(height: int = 32, width: int = 40, sigma_rgb: float = 15.0, labels: int = 4):
    """Features and values of two noisy images, and what the exact filter makes of them."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(np.stack([textured(rng, height, width) for _ in range(2)]))
    maps = np.stack([smooth_maps(rng, labels, height, width) for _ in range(2)])
    features = bilateral_features(images.permute(0, 3, 1, 2).double(), 50, sigma_rgb)
    values = torch.from_numpy(maps).double().flatten(2)
    return features, values, ExactGaussian(features).filter(values)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().sum() / expected.abs().sum())


@pytest.mark.parametrize("sigma_rgb", [15.0, 3.0])
def test_equals_the_exact_gaussian(sigma_rgb):
    features, values, expected = scene(sigma_rgb=sigma_rgb)
    torch.testing.assert_close(AttentionGaussian(features).filter(values), expected,
                               rtol=1e-10, atol=1e-12)
    found = AttentionGaussian(features.float()).filter(values.float())
    torch.testing.assert_close(found, expected.float(), rtol=2e-3, atol=1e-4)
    assert error(found, expected) < 5e-5
    torch.testing.assert_close(AttentionGaussian(features, amplitude=0.3).filter(values),
                               0.3 * expected)


def naive(features: torch.Tensor, values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """The kernel from features and squares that are rounded each for itself."""
    centred = features - features.mean(1, keepdim=True)
    squares = (0.5 * centred.square().sum(2)).to(kind).double()
    rounded = centred.to(kind).double()
    logits = rounded @ rounded.mT - squares[:, :, None] - squares[:, None]
    return values @ logits.exp().mT


@pytest.mark.parametrize("kind, sigma_rgb, most", [
    (torch.float16, 15.0, 6e-4), (torch.float16, 3.0, 3e-3),
    (torch.bfloat16, 15.0, 5e-3), (torch.bfloat16, 3.0, 3e-2)])
def test_sixteen_bits_need_squares_of_the_rounded_features(kind, sigma_rgb, most):
    features, values, expected = scene(sigma_rgb=sigma_rgb)
    assert error(naive(features, values, kind), expected) > 4 * most
    for choice in ({"round_to": kind}, {"dtype": kind}):  # rounded numbers; CPU kernels of the type
        found = AttentionGaussian(features.float(), **choice).filter(values.float())
        assert 1e-5 < error(found, expected) < most


@pytest.mark.parametrize("kind", HALVES)
def test_in_16_bits_neither_the_origin_nor_the_scale_of_values_matters(kind):
    features, values, expected = scene()
    moved = AttentionGaussian(features.float() + 300, round_to=kind).filter(values.float())
    assert error(moved, expected) < 5e-3
    gaussian = AttentionGaussian(features.float(), dtype=kind)
    found = gaussian.filter(values.float())
    apart = torch.tensor([1.0, 2.0**30, 2.0**-30, 4.0])[:, None]  # by the label
    for factor in (2.0**40, 2.0**-40, apart):
        assert torch.equal(gaussian.filter(values.float() * factor), found * factor)
    assert not gaussian.filter(0 * values).any()


def test_pixels_that_resemble_no_other_keep_their_own_value():
    features = torch.tensor([[[0.0], [40.0], [80.0]]])
    values = torch.tensor([[[1.0, -2.0, 0.5]]])
    for kind in (torch.float32, *HALVES):
        torch.testing.assert_close(AttentionGaussian(features, dtype=kind).filter(values), values)


@pytest.fixture
def calls(monkeypatch):
    """Shapes, types and results of all attention calls, and whether N × N was allowed in them."""
    seen, attention = [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        out = attention(query, key, value, **options)
        seen.append(((query.shape, key.shape, value.shape), query.dtype, out.clone(),
                     torch.backends.cuda.math_sdp_enabled()))
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("labels, turns, head", [(1, 1, 16), (21, 1, 24), (81, 1, 88),
                                                 (127, 1, 128), (128, 2, 72), (300, 3, 104)])
def test_many_values_go_through_in_equal_turns_of_one_head_dimension(calls, labels, turns, head):
    images, values = pictures(2, 9, 7), random(2, labels, 9, 7)
    found = bilateral_filter(images, values, 5, 30, AttentionGaussian)
    torch.testing.assert_close(found, bilateral_filter(images, values, 5, 30, ExactGaussian))
    assert len(calls) == turns
    for shapes, *_ in calls:
        assert shapes == ((2, 1, 63, head), (2, 1, 64, head), (2, 1, 64, head))


def test_no_matrix_of_all_pairs_is_made(calls):
    features, values = bilateral_features(pictures(1, 60, 80), 50, 15), random(1, 21, 4800)
    pairs = 4 * 4800**2
    assert peak_bytes(lambda: AttentionGaussian(features).filter(values)) < pairs / 10
    assert [allowed for *_, allowed in calls] == [False]
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("pixels", [1, 40, 3000])
def test_the_divisor_is_far_from_the_limits_of_16_bits(calls, pixels):
    values = torch.full((1, 2, pixels), 0.25)
    found = AttentionGaussian(torch.zeros(1, pixels, 1), round_to=torch.float16).filter(values)
    torch.testing.assert_close(found, values * pixels)
    ((_, _, out, _),) = calls
    assert 0.4 < out[..., 2].min() < out[..., 2].max() + 1 < 3


@pytest.mark.parametrize("height, width, stride", [
    (20, 18, 2), (21, 17, 2), (20, 19, 4), (11, 23, 3), (5, 6, 9), (1, 1, 2)])
def test_keys_on_a_grid(height, width, stride):
    images, values = pictures(2, height, width), random(2, 3, height, width)
    found = attention_filter(images, values, 10, 30, stride, 0.7)
    expected = sampled_filter(images.double(), values.double(), 10, 30, stride, 0.7)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 48), (41, 47)])
def test_on_a_grid_keys_stand_for_all_pixels_whatever_the_size(size):
    """Of a grey image nothing but places differ, and few of them say all."""
    images, values = torch.full((1, 3, *size), 90.0), torch.ones(1, 1, *size)
    exact = bilateral_filter(images, values, 50, 15, ExactGaussian)
    for stride in (2, 3):
        found = attention_filter(images, values, 50, 15, stride, 1.0)
        assert error(found, exact) < 5e-3


def test_a_quarter_of_the_keys_is_nearer_to_the_exact_filter_than_the_lattice():
    images = 60 + 0.3 * pictures(2, 48, 56)
    values = F.interpolate(random(2, 5, 5, 6), (48, 56), mode="bilinear")
    exact = bilateral_filter(images, values, 50, 15, ExactGaussian)
    lattice, ours = (filter(images, values, 50, 15) for filter in (
        bilateral_filter, attention_filter))
    assert error(ours / 0.58, exact) < 0.02
    assert error(lattice * (exact.sum() / lattice.sum()), exact) > 0.03
    assert 0.9 < (ours.sum() / lattice.sum()).item() < 1.1  # the amplitude is the lattice's


@pytest.mark.parametrize("stride", [1, 2])
def test_a_batch_equals_its_images(stride):
    images = pictures(3)
    values = random(3, 7, 20, 18) * torch.tensor([1, 100, 0.01]).view(3, 1, 1, 1)
    together = attention_filter(images, values, 50, 15, stride)
    for i in range(3):
        alone = attention_filter(images[i:i + 1], values[i:i + 1], 50, 15, stride)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_result_has_the_type_of_the_values_and_no_gradient(dtype):
    values = random(1, 2, 20, 18).to(dtype).requires_grad_()
    out = attention_filter(pictures(1), values, 50, 15)
    assert out.dtype == dtype and not out.requires_grad and out.is_contiguous()
    expected = attention_filter(pictures(1), values.float(), 50, 15)
    torch.testing.assert_close(out, expected.to(dtype))


def test_autocast_does_not_lower_the_precision(calls):
    images, values = pictures(1), random(1, 2, 20, 18)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_filter(images, values, 50, 15)
    assert torch.equal(inside, attention_filter(images, values, 50, 15))
    assert {dtype for _, dtype, *_ in calls} == {torch.float32}


@pytest.mark.parametrize("options, message", [
    ({"stride": 2}, "do not fit"), ({"size": (4, 5), "stride": 0}, "do not fit"),
    ({"size": (4, 4)}, "do not fit")])
def test_a_grid_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionGaussian(random(1, 20, 5), **options)


def test_features_and_values_that_do_not_work_are_refused():
    for features in (torch.zeros(4, 5), torch.zeros(1, 4, 5, dtype=torch.long)):
        with pytest.raises(ValueError, match="features must be"):
            AttentionGaussian(features)
    with pytest.raises(ValueError, match="built for"):
        AttentionGaussian(random(2, 9, 5)).filter(random(2, 1, 8))
    for bad in (float("nan"), float("inf")):
        features = random(1, 9, 5)
        features[0, 3, 2] = bad
        with pytest.raises(ValueError, match="not finite"):
            AttentionGaussian(features)
    far = torch.tensor([[[0.0], [1000.0]]])
    with pytest.raises(ValueError, match="too far apart for torch.float16"):
        AttentionGaussian(far, round_to=torch.float16)
    assert torch.equal(AttentionGaussian(far).filter(torch.ones(1, 1, 2)), torch.ones(1, 1, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1000.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_on_a_gpu_which_is_not_waited_for_features_that_do_not_work_make_nan(bad, kind):
    features, values = random(2, 9, 5), random(2, 3, 9)
    expected = AttentionGaussian(features, dtype=kind).filter(values)
    features[1, 3, 2] = bad
    with claimed_gpu() as counts:
        found = AttentionGaussian(OnGpu(features), dtype=kind).filter(OnGpu(values)).cpu()
        assert counts.reads == 0
    torch.testing.assert_close(found[0], expected[0], rtol=2e-3, atol=0)  # the other image's
    assert found[1].isnan().all() == (bad != 1000 or kind == torch.float16)


def test_a_part_is_the_filter_of_its_images():
    features, values = random(3, 9, 5), random(3, 4, 9)
    part = AttentionGaussian(features).part(slice(1, 3))
    torch.testing.assert_close(part.filter(values[1:]),
                               AttentionGaussian(features).filter(values)[1:])


def test_the_options_of_the_class_together():
    features = bilateral_features(pictures(1), 50, 15)
    values = random(1, 3, 360)
    make = partial(AttentionGaussian, features, (20, 18), 2, 0.58)
    expected = attention_filter(pictures(1), values.view(1, 3, 20, 18), 50, 15).flatten(2)
    assert torch.equal(make().filter(values), expected)
    for kind in HALVES:
        assert 0 < error(make(dtype=kind).filter(values), expected) < 2e-2
