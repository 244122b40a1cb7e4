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

from more.data.transforms import (
    MEAN,
    STD,
    TrainTransform,
    crop_window,
    inference_image,
    jitter_colours,
    normalise,
    resize,
    sample_generator,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def back(view: np.ndarray) -> np.ndarray:
    """Normalised `[3,S,S]` → 0..255 `[S,S,3]`."""
    return view.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["voc", "coco", "none"]),
       st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_any_size_gives_a_full_crop(height, width, augment, seed):
    transform = TrainTransform(32, augment)
    view, (y0, y1, x0, x1) = transform(noise(height, width), np.random.default_rng(seed))
    assert view.shape == (3, 32, 32) and view.dtype == np.float32 and np.isfinite(view).all()
    assert 0 <= y0 < y1 <= 32 and 0 <= x0 < x1 <= 32
    if augment != "coco":
        assert (y0, y1, x0, x1) == (0, 32, 0, 32)


def test_a_view_depends_on_seed_epoch_and_index_only():
    transform, image = TrainTransform(24), noise(40, 50)
    first = transform(image, sample_generator(1, 2, 3))[0]
    assert np.array_equal(first, transform(image, sample_generator(1, 2, 3))[0])
    others = [transform(image, sample_generator(*key))[0]
              for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1))]
    assert all(not np.array_equal(first, other) for other in others)


def test_plain_view_is_the_resized_image():
    image = noise(40, 50)
    view, _ = TrainTransform(20, "none")(image, np.random.default_rng(0))
    assert np.abs(back(view) - resize(image, 20, 20)).max() < 1e-3
    same, _ = TrainTransform(40, "none")(image[:, :40], np.random.default_rng(0))
    assert np.abs(back(same) - image[:, :40]).max() < 1e-3


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip(flip):
    image = noise(30, 30)
    transform = TrainTransform(30, area=(1, 1), aspect=(1, 1), flip=flip, jitter_probability=0)
    expected = image[:, ::-1] if flip else image
    assert np.array_equal(transform.view(image, np.random.default_rng(0))[0], expected)


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
        view, (y0, y1, x0, x1) = transform.view(noise(60, 60), np.random.default_rng(seed))
        outside = np.ones((48, 48), bool)
        outside[y0:y1, x0:x1] = False
        padded += outside.any()
        assert not view[outside].any() and view[y0:y1, x0:x1].any(2).all()
    assert 15 < padded < 40


def test_jitter_without_strength_changes_nothing():
    image = noise(20, 20)
    same = jitter_colours(image, (0, 0, 0, 0), np.random.default_rng(0))
    assert np.abs(same.astype(int) - image).max() <= 1


def test_brightness_contrast_saturation():
    image = (noise(40, 40) // 2 + 60).astype(np.uint8)
    grey = image @ np.array([0.299, 0.587, 0.114])
    for seed in range(8):
        bright = jitter_colours(image, (0.3, 0, 0, 0), np.random.default_rng(seed)) / image
        assert bright.std() < 0.01 and 0.69 < bright.mean() < 1.31
        contrast = jitter_colours(image, (0, 0.3, 0, 0), np.random.default_rng(seed))
        assert abs(contrast.mean((0, 1)) @ [0.299, 0.587, 0.114] - grey.mean()) < 1
        grey_kept = jitter_colours(image, (0, 0, 0.3, 0), np.random.default_rng(seed))
        assert np.abs(grey_kept @ np.array([0.299, 0.587, 0.114]) - grey).max() < 1.5


def test_hue_turns_red_towards_green_or_blue():
    red = np.full((4, 4, 3), (200, 20, 20), np.uint8)
    seen = [jitter_colours(red, (0, 0, 0, 0.3), np.random.default_rng(k))[0, 0] for k in range(30)]
    assert any(colour[1] > 150 for colour in seen) and any(colour[2] > 150 for colour in seen)
    assert all(abs(int(colour.max()) - 200) <= 2 for colour in seen)


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


@pytest.mark.slow
def test_a_view_takes_milliseconds():
    transform, image = TrainTransform(224), noise(375, 500)
    start = time.process_time()
    for seed in range(50):
        transform(image, np.random.default_rng(seed))
    assert (time.process_time() - start) / 50 < 6e-3
