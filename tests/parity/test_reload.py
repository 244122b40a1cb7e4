"""The start from an ImageNet ViT against the release."""

import numpy as np
import torch
from safetensors.torch import save_file

from more.config.schema import ModelConfig
from more.method.backbones import create_backbone
from more.method.make_network import build_network
from tests.parity.compare import close

TOL = 1e-4
PATCH = 8


def test_tokens_and_positions(parity, tmp_path):
    arrays = parity("reload")
    old, new = (int(side) for side in arrays["grid_old_new"])
    tokens, width = arrays["model.cls_token"].shape[1:]
    sizes = {"patch_size": PATCH, "embed_dim": width, "depth": 1, "num_heads": 4}
    state = create_backbone("custom", old * PATCH, sizes).state_dict()
    state["cls_token"] = torch.from_numpy(np.array(arrays["ckpt.cls_token"]))
    state["pos_embed"] = torch.from_numpy(np.array(arrays["ckpt.pos_embed"]))
    save_file(state, tmp_path / "vit.safetensors")

    torch.manual_seed(0)
    network = build_network(ModelConfig(
        backbone="custom", num_classes=tokens - 4, weights=str(tmp_path / "vit.safetensors"),
        aux_layer=-1, decoder_width=8, vit=sizes), new * PATCH)
    encoder = network.encoder
    close(encoder.cls_token, arrays["model.cls_token"], TOL)
    close(encoder.pos_embed[:, 4:], arrays["model.pos_embed_from_token4"], TOL)
    # The first four are random: a standard normal cut at ±2.
    low, high, spread = (float(value) for value in arrays["model.pos_embed_first4_min_max_std"])
    first = encoder.pos_embed[:, :4].detach()
    assert -2 <= low <= first.max() and first.min() <= high <= 2 and first.abs().max() <= 2
    assert abs(first.std().item() - spread) < 4 * spread / first.numel() ** 0.5
