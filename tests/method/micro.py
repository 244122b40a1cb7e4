"""A micro network for the tests of this folder: no file, no download."""

from __future__ import annotations

import torch

from more.config.schema import ModelConfig
from more.method.make_network import build_network
from more.method.network import MoReNetwork

PATCH, SIDE, WIDTH = 8, 40, 24
SIZES = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": 4, "num_heads": 3}


def micro_model(classes: int = 5, **options) -> ModelConfig:
    """Settings of a ViT of four blocks; options are other settings of the model."""
    return ModelConfig(**{"backbone": "custom", "num_classes": classes, "weights": "none",
                          "decoder_width": 16, "vit": SIZES, **options})


def micro_network(classes: int = 5, seed: int = 0, **options) -> MoReNetwork:
    """A ViT of four blocks on 40-pixel images, all weights redrawn so that no term hides."""
    torch.manual_seed(seed)
    network = build_network(micro_model(classes, **options), SIDE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return network.eval()


def images(batch: int = 2, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Random normalised images [batch,3,height,width]."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
