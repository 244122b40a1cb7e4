"""Views of an image that the localizer adds up come back in the image's own place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from more.config.load import load_config
from more.inference.localizer import Localizer, Request


def left_bright(images, mode):
    """A decoder whose class 1 is wherever the image is bright: what it says moves with it."""
    bright = torch.nn.functional.avg_pool2d(images[:, :1], 16)
    return torch.cat([-bright, bright, torch.full_like(bright, -5.0)], 1)


@pytest.mark.parametrize("scales", ["(1.0,)", "(1.0,2.0)"])
def test_logits_of_the_mirror_image_are_flipped_back(scales):
    config = load_config("configs/shapes_micro.py", [
        "loss.weights.seg=0.1", f"inference.segment_scales={scales}", "inference.size=64"])
    network = left_bright
    network.encoder = SimpleNamespace(patch_size=16)
    localizer = Localizer(config, network, Request(("decoder",)), torch.device("cpu"))
    image = torch.zeros(1, 3, 64, 64)
    image[..., :16] = 3.0  # the left quarter
    probabilities = localizer._decoder(image, None)[0, 1]
    assert probabilities.shape[-1] == localizer.side
    quarter = probabilities.shape[-1] // 4
    assert probabilities[:, :quarter].min() > 0.99
    assert probabilities[:, quarter + 1:].max() < 0.6
