"""Leading tokens that share one token's weight in attention leave the backbone's features alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from more.config.schema import ModelConfig
from more.method.encoder import ClassTokenEncoder
from more.method.weight_files import load_backbone
from tests.method.micro import PATCH, SIDE, SIZES, images


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=SIDE, num_classes=0, dynamic_img_size=True, **SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def encoder(token_attention: str, classes: int = 9) -> ClassTokenEncoder:
    """Class tokens are copies of the backbone's; no regularising ones."""
    result = ClassTokenEncoder(vit(), classes, SIDE, 0, -3, token_attention)
    load_backbone(result, vit().state_dict(), 1, ModelConfig(), "test")
    return result.eval()


@torch.no_grad()
def test_copies_of_the_class_token_count_as_one():
    expected = vit().forward_features(images())[:, 1:]
    shared = encoder("shared")(images()).patch_tokens
    torch.testing.assert_close(shared, expected, atol=1e-4, rtol=1e-4)
    full = encoder("full")(images()).patch_tokens
    assert (full - expected).abs().max() > 100 * (shared - expected).abs().max()


def test_it_works_under_autocast_and_recomputation():
    model = encoder("shared")
    plain = model(images()).patch_tokens
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(model(images()).patch_tokens, plain)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images()).patch_tokens
    assert F.cosine_similarity(half.float(), plain, dim=-1).min() > 0.99
    half.float().sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())


@torch.no_grad()
@pytest.mark.parametrize("size", [SIDE, 3 * PATCH])
def test_one_leading_token_is_the_same_either_way(size):
    batch = images(1, size, size)
    torch.testing.assert_close(encoder("shared", 1)(batch).patch_tokens,
                               encoder("full", 1)(batch).patch_tokens)
