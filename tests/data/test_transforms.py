"""Views of an image: geometry, colours, box, determinism."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from more.data.colours import UNCHANGED
from more.data.transforms import (
    TrainTransform,
    crop_window,
    inference_image,
    normalise,
    resize,
    sample_generator,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["voc", "coco", "none"]),
       st.sampled_from(["device", "pil"]), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_any_size_gives_a_full_crop(height, width, augment, pipeline, seed):
    transform = TrainTransform(32, augment, pipeline)
    view, jitter, box, window = transform(noise(height, width), np.random.default_rng(seed))
    y0, y1, x0, x1 = box
    assert view.shape == (32, 32, 3) and view.dtype == np.uint8 and view.flags.writeable
    assert jitter.shape == (13,) and jitter.dtype == np.float32 and np.isfinite(jitter).all()
    assert pipeline == "device" or np.array_equal(jitter, UNCHANGED)
    assert 0 <= y0 < y1 <= 32 and 0 <= x0 < x1 <= 32
    if augment != "coco":
        assert (y0, y1, x0, x1) == (0, 32, 0, 32)
    top, left, shown_height, shown_width, mirrored = window
    assert window.dtype == np.float64 and mirrored in ((0, 1) if augment != "none" else (0,))
    assert 0 <= top < top + shown_height <= height + 1e-9
    assert 0 <= left < left + shown_width <= width + 1e-9
    if y1 - y0 < 32:  # all of it is shown
        assert top == 0 and shown_height == pytest.approx(height)
    if x1 - x0 < 32:
        assert left == 0 and shown_width == pytest.approx(width)


def test_a_view_depends_on_seed_epoch_and_index_only():
    transform, image = TrainTransform(24), noise(40, 50)
    first = transform(image, sample_generator(1, 2, 3))
    assert all(map(np.array_equal, first, transform(image, sample_generator(1, 2, 3))))
    others = [transform(image, sample_generator(*key)).pixels
              for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1))]
    assert all(not np.array_equal(first.pixels, other) for other in others)


def test_plain_view_is_the_resized_image():
    image = noise(40, 50)
    view = TrainTransform(20, "none")(image, np.random.default_rng(0))
    assert np.array_equal(view.pixels, resize(image, 20, 20))
    same = TrainTransform(40, "none")(image[:, :40], np.random.default_rng(0))
    assert np.array_equal(same.pixels, image[:, :40]) and np.array_equal(same.jitter, UNCHANGED)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip(flip):
    image = noise(30, 30)
    transform = TrainTransform(30, area=(1, 1), aspect=(1, 1), flip=flip, jitter_probability=0)
    expected = image[:, ::-1] if flip else image
    assert np.array_equal(transform(image, np.random.default_rng(0)).pixels, expected)


def test_both_pipelines_choose_the_same_window():
    steps = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    image = np.kron(steps, np.ones((20, 20, 3), np.uint8))
    for augment in ("voc", "coco"):
        for seed in range(6):
            views = [TrainTransform(64, augment, pipeline, jitter_probability=0)(
                image, np.random.default_rng(seed)) for pipeline in ("device", "pil")]
            difference = np.abs(views[0].pixels.astype(int) - views[1].pixels).mean()
            assert difference < 4 and np.array_equal(views[0].box, views[1].box)


def test_crop_windows_follow_the_distribution():
    rng = np.random.default_rng(0)
    windows = np.array([crop_window(375, 500, (0.32, 1), (3 / 4, 4 / 3), rng)
                        for _ in range(3000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (top + height <= 375).all()
    assert (left >= 0).all() and (left + width <= 500).all()
    area, ratio = height * width / (375 * 500), width / height
    assert 0.315 < area.min() < 0.34 and area.max() > 0.97
    assert 0.745 < ratio.min() < 0.78 and 1.29 < ratio.max() < 1.34
    torch.manual_seed(0)  # torchvision's own windows have the same mean area and aspect ratio
    theirs = np.array([RandomResizedCrop.get_params(torch.empty(3, 375, 500), [0.32, 1],
                                                    [3 / 4, 4 / 3]) for _ in range(3000)])
    assert abs((theirs[:, 2] * theirs[:, 3]).mean() / (height * width).mean() - 1) < 0.02
    assert abs((theirs[:, 3] / theirs[:, 2]).mean() / ratio.mean() - 1) < 0.02
    assert crop_window(10, 1000, (0.9, 1), (3 / 4, 4 / 3), rng) == (0, 493, 10, 13)
    assert crop_window(1000, 10, (0.9, 1), (3 / 4, 4 / 3), rng) == (493, 0, 13, 10)


def test_box_is_the_real_content():
    transform, padded = TrainTransform(48, "coco", jitter_probability=0), 0
    for seed in range(40):
        view, _, (y0, y1, x0, x1), _ = transform(noise(60, 60), np.random.default_rng(seed))
        outside = np.ones((48, 48), bool)
        outside[y0:y1, x0:x1] = False
        padded += outside.any()
        assert not view[outside].any() and view[y0:y1, x0:x1].any(2).all()
    assert 15 < padded < 40


@pytest.mark.parametrize(("height", "width"), [(375, 500), (100, 80), (64, 64)])
def test_inference_image_is_torch_bilinear(height, width):
    """Method §4.12: normalised, then resized bilinearly, corners not aligned."""
    image = noise(height, width)
    expected = interpolate(torch.from_numpy(normalise(image))[None], (64, 64), mode="bilinear",
                           align_corners=False)[0].numpy()
    assert np.abs(inference_image(image, 64) - expected).max() < 1e-4


def test_unknown_recipe():
    with pytest.raises(ValueError, match="augment 'x'"):
        TrainTransform(10, "x")
    with pytest.raises(ValueError, match="pipeline 'x'"):
        TrainTransform(10, "voc", "x")


@pytest.mark.slow
def test_a_view_takes_milliseconds():
    transform, image = TrainTransform(224), noise(375, 500)
    start = time.process_time()
    for seed in range(50):
        transform(image, np.random.default_rng(seed))
    assert (time.process_time() - start) / 50 < 6e-3
