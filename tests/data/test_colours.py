"""Colour jitter drawn in the loader, applied to batches; and Pillow's one-by-one form."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from more.data.colours import (
    UNCHANGED,
    apply_jitter,
    draw_jitter,
    jitter_pil,
    network_input,
    turn_hue,
)
from more.tensors import MEAN, STD

GREY = np.array([0.299, 0.587, 0.114])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def jittered(image: np.ndarray, strength: tuple, seed: int) -> np.ndarray:
    """`[H, W, 3]` after drawing and applying."""
    jitter = draw_jitter(image, strength, np.random.default_rng(seed))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return apply_jitter(pixels, torch.from_numpy(jitter)[None])[0].permute(1, 2, 0).numpy()


def test_without_strength_nothing_changes():
    assert np.array_equal(jittered(noise(20, 20), (0, 0, 0, 0), 0), noise(20, 20))


def test_brightness_contrast_saturation():
    image = (noise(40, 40) // 2 + 60).astype(np.uint8)
    for seed in range(8):
        bright = jittered(image, (0.3, 0, 0, 0), seed) / image
        assert bright.std() < 0.01 and 0.69 < bright.mean() < 1.31
        contrast = jittered(image, (0, 0.3, 0, 0), seed)
        assert abs(contrast.mean((0, 1)) @ GREY - (image @ GREY).mean()) < 1
        assert np.abs(jittered(image, (0, 0, 0.3, 0), seed) @ GREY - image @ GREY).max() < 1.5


@given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(-0.5, 0.5))
@settings(max_examples=200, deadline=None)
def test_hue_is_that_of_colorsys(colour, turn):
    """The standard library, one pixel at a time, is the oracle."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    expected = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
    turned = turn_hue(torch.tensor(colour).view(1, 3, 1, 1).float(), torch.tensor([turn]))
    assert np.abs(turned.view(3).numpy() - expected).max() < 0.02


def test_each_image_of_a_batch_has_its_own_turn():
    images = torch.from_numpy(noise(30, 30)).permute(2, 0, 1).float().repeat(3, 1, 1, 1)
    turned = turn_hue(images, torch.tensor([0.0, 0.1, -0.2]))
    assert (turned[0] - images[0]).abs().max() < 1e-3
    for k, turn in ((1, 0.1), (2, -0.2)):
        expected = functional.adjust_hue(images[k] / 255, turn) * 255
        assert (turned[k] - expected).abs().max() < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_folded_and_one_by_one_agree_where_nothing_is_cut(seed):
    """Without hue and on middling colours the two pipelines differ by roundings only."""
    image = (noise(30, 30, seed) // 8 + 100).astype(np.uint8)
    strength = (0.2, 0.2, 0.2, 0)
    rng = np.random.default_rng(seed)
    while True:  # a seed whose order of the first three is that of the four
        state = rng.bit_generator.state
        order = [kind for kind in rng.permutation(4) if kind < 3]
        rng.bit_generator.state = state
        if list(rng.permutation(3)) == order:
            rng.bit_generator.state = state
            break
    factors = {0: 0.9, 1: 1.1, 2: 0.85}

    class Fixed:
        """The same order and factors for both."""

        def __init__(self, count):
            self.order = order if count == 3 else [*order, 3]
            self.left = list(self.order)

        def permutation(self, _):
            return np.array(self.order)

        def uniform(self, low, high):
            return factors.get(self.left.pop(0), 0.0) if self.left else 0.0

    folded = draw_jitter(image, strength, Fixed(3))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    ours = apply_jitter(pixels, torch.from_numpy(folded)[None])[0].permute(1, 2, 0).numpy()
    theirs = jitter_pil(image, strength, Fixed(4))
    assert np.abs(ours - theirs).max() <= 3


def test_pillow_jitter_is_deterministic_and_changes_colours():
    image = noise(20, 20)
    strength = (0.4, 0.4, 0.4, 0.1)
    first = jitter_pil(image, strength, np.random.default_rng(3))
    assert np.array_equal(first, jitter_pil(image, strength, np.random.default_rng(3)))
    assert np.abs(first.astype(int) - image).mean() > 3
    still = jitter_pil(image, (0, 0, 0, 0), np.random.default_rng(3))
    assert np.abs(still.astype(int) - image).mean() < 1  # hue goes through 8-bit HSV all the same


def test_prepared_batch():
    """Normalised; padding stays black; images without jitter are exact."""
    images = torch.from_numpy(np.stack([noise(16, 16, seed) for seed in range(3)]))
    images[2, :, 10:] = 0
    box = torch.tensor([[0, 16, 0, 16], [0, 16, 0, 16], [0, 16, 0, 10]])
    jitter = torch.from_numpy(np.stack([UNCHANGED] * 3))
    jitter[1:, 3:12:4] = 20.0  # brighter by 20 levels
    batch = {"images": images, "jitter": jitter, "box": box}
    ready = network_input(batch, torch.device("cpu"), MEAN, STD)
    assert ready.shape == (3, 3, 16, 16) and ready.dtype == torch.float32
    levels = ready * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    levels = levels.permute(0, 2, 3, 1)
    expected = images.float()
    expected[1] = (expected[1] + 20).clamp(max=255)
    expected[2, :, :10] = (expected[2, :, :10] + 20).clamp(max=255)
    assert (levels - expected).abs().max() < 1e-3
    plain = network_input({**batch, "jitter": torch.from_numpy(np.stack([UNCHANGED] * 3))},
                    torch.device("cpu"), MEAN, STD)
    assert torch.equal(plain[0], ready[0])
