"""The encoder against the release at native, larger and rectangular image sizes."""

import pytest
import torch

from tests.parity.compare import close
from tests.parity.released import encoder_network

TOL = 1e-4
CASES = ["native", "alt", "rect"]


@pytest.fixture(scope="module")
def encoder(parity):
    return encoder_network(parity("encoder")).encoder


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_positions(parity, encoder, case):
    arrays = parity("encoder")
    size = arrays[f"{case}.image"].shape[-2:]
    close(encoder.positions(size)[0], arrays[f"{case}.pos_embed_used"], TOL)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_tokens(parity, encoder, case):
    arrays = parity("encoder")
    out = encoder(torch.from_numpy(arrays[f"{case}.image"]))
    close(out.class_tokens, arrays[f"{case}.class_tokens"], TOL)
    close(out.patch_tokens, arrays[f"{case}.patch_tokens"], TOL)
    close(out.aux_patch_tokens, arrays[f"{case}.aux_patch_tokens"], TOL)
    everything = arrays[f"{case}.all_tokens_after_norm"][:, encoder.regularising_tokens:]
    close(torch.cat([out.class_tokens, out.patch_tokens], 1), everything, TOL)
    assert out.grid[0] * out.grid[1] == out.patch_tokens.shape[1]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_raw_attention(parity, encoder, case):
    arrays = parity("encoder")
    raw = encoder.attention(torch.from_numpy(arrays[f"{case}.image"]))
    classes = encoder.num_classes
    close(raw[:, :, :classes, classes:], arrays[f"{case}.attn_class_to_patch"], TOL)
    if f"{case}.attn_last" in arrays:
        whole = arrays[f"{case}.attn_last"]
        close(raw[:len(whole)], whole, TOL)
    else:
        found = torch.stack([raw.double().sum(), raw.double().norm()])
        close(found, arrays[f"{case}.attn_last_sum_l2"], TOL)
