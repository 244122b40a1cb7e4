"""Backbones by name and from files: start of the tokens, refusals in plain words."""

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from more.config.schema import ModelConfig
from more.errors import UserError
from more.method.backbones import backbone_normalisation, create_backbone, hub_state
from more.method.make_network import build_network
from tests.method.micro import PATCH, SIDE, SIZES, images, micro_model, micro_network

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(os.environ.get("MORE_WEIGHTS", ROOT.parent / "shared" / "weights"))


def vit_file(path: Path, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = create_backbone("custom", 3 * PATCH, {**SIZES, "num_classes": 7}).state_dict()
    state["cls_token"] = torch.randn_like(state["cls_token"])
    state.update(changes)
    save_file(state, path)
    return state


def build(path, **options):
    return build_network(micro_model(weights=path, **options), SIDE)


def test_tokens_start_as_copies_of_the_pretrained_one(tmp_path):
    state = vit_file(tmp_path / "vit.safetensors")
    encoder = build(tmp_path / "vit.safetensors").encoder
    assert torch.equal(encoder.cls_token, state["cls_token"].expand_as(encoder.cls_token))
    position = state["pos_embed"][:, :1]
    assert torch.equal(encoder.pos_embed[:, 4:9], position.expand(-1, 5, -1))
    assert encoder.pos_embed[:, :4].std() > 0.7
    assert torch.equal(encoder.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])


def test_options_of_the_start(tmp_path):
    path = tmp_path / "vit.safetensors"
    state = vit_file(path)
    encoder = build(path, token_init="perturbed", token_noise=0.1, register_init="small").encoder
    difference = encoder.cls_token[:, 4:] - state["cls_token"]
    assert 0.07 < difference.std() < 0.13
    assert torch.equal(encoder.cls_token[:, :4], state["cls_token"].expand(-1, 4, -1))
    assert 0.01 < encoder.pos_embed[:, :4].std() < 0.03
    spread = build(path, regularising_std=0.1).encoder.pos_embed[:, :4].std()
    assert 0.07 < spread < 0.13
    with pytest.raises(UserError, match="0 register tokens"):
        build(path, register_init="registers")


def test_registers_of_the_backbone_can_be_kept(tmp_path):
    sizes = {**SIZES, "reg_tokens": 4, "no_embed_class": True}
    state = create_backbone("custom", 3 * PATCH, sizes).state_dict()
    state["reg_token"] = torch.randn_like(state["reg_token"])
    save_file(state, tmp_path / "reg.safetensors")
    encoder = build(tmp_path / "reg.safetensors", vit=sizes,
                    register_init="registers").encoder
    assert torch.equal(encoder.cls_token[:, :4], state["reg_token"])
    assert encoder.pos_embed[:, :9].abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize(("name", "side", "kwargs"), [
    ("vit_small_patch14_reg4_dinov2", 70, {"depth": 4}),
    ("vit_small_patch16_224.dino", 64, {"depth": 4}),
    ("vit_tiny_patch16_224.augreg_in21k", 64, {"depth": 4}),
    ("deit_tiny_distilled_patch16_224", 64, {"depth": 4}),
    ("deit3_small_patch16_224", 64, {"depth": 4}),
    ("vit_base_patch16_clip_224", 64, {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    ("vit_base_patch16_224.mae", 64, {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    ("vit_base_patch16_siglip_224", 64, {"depth": 3, "embed_dim": 96, "num_heads": 3}),
])
def test_timm_backbones_by_name(name, side, kwargs):
    network = build_network(ModelConfig(backbone=name, num_classes=3, weights="none",
                                        decoder_width=8, vit=kwargs), side)
    out = network.eval()(images(1, side, side))
    grid = side // network.encoder.patch_size
    assert out.cam.shape == (1, 3, grid, grid)
    assert all(t.isfinite().all() for t in (out.cam, out.graph_tokens, out.seg_logits))


@torch.no_grad()
def test_average_pooling_backbones_keep_their_final_norm():
    """timm hides the last norm of such models behind the pooling, under another name."""
    vit = create_backbone("custom", SIDE, {**SIZES, "global_pool": "avg"})
    state = vit.state_dict()
    assert "fc_norm.weight" in state and "norm.weight" not in state
    network = build_network(micro_model(3, vit={**SIZES, "global_pool": "avg"}), SIDE)
    assert "encoder.norm.weight" in network.state_dict()


@torch.no_grad()
def test_the_encoder_computes_what_timm_computes(tmp_path):
    """One class, no regularising token: the same sequence as the plain ViT."""
    torch.manual_seed(0)
    sizes = {**SIZES, "init_values": 0.5}
    vit = create_backbone("custom", SIDE, sizes).eval()
    vit.cls_token.normal_()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    network = build(tmp_path / "vit.safetensors", num_classes=1, regularising_tokens=0,
                    vit=sizes).eval()
    out = network.encoder(images())
    tokens = torch.cat([out.class_tokens, out.patch_tokens], 1)
    torch.testing.assert_close(tokens, vit.forward_features(images()))


@torch.no_grad()
def test_siglip_starts_off_its_features_by_the_attention_to_our_tokens_alone(tmp_path, monkeypatch):
    """It has no class token: the same with our tokens out of the patches' sight."""
    name, sizes = "vit_base_patch16_siglip_224", {"depth": 3, "embed_dim": 96, "num_heads": 3}
    vit = timm.create_model(name, img_size=64, dynamic_img_size=True, num_classes=0, **sizes)
    save_file({key: value.contiguous() for key, value in vit.state_dict().items()},
              tmp_path / "siglip.safetensors")
    pictures, off = torch.randn(2, 3, 64, 64), {}
    expected = vit.eval().forward_features(pictures)
    for attention in ("full", "shared"):
        encoder = build_network(ModelConfig(
            backbone=name, num_classes=5, weights=tmp_path / "siglip.safetensors", vit=sizes,
            token_attention=attention), 64).eval().encoder
        found = encoder(pictures).patch_tokens
        off[attention] = float((found - expected).norm() / expected.norm())
    assert 1e-4 < off["shared"] < off["full"] / 2

    def unseen(tokens):
        bias = torch.zeros(1, 1, 1, tokens.shape[1])
        bias[..., :encoder.cls_token.shape[1]] = float("-inf")
        return bias
    monkeypatch.setattr(encoder, "_attention_bias", unseen)
    torch.testing.assert_close(encoder(pictures).patch_tokens, expected)


def test_unknown_backbone_gets_the_nearest_names():
    with pytest.raises(UserError) as caught:
        create_backbone("vit_smal_patch14_dinov2", 70)
    assert "vit_small_patch14_dinov2" in caught.value.fix
    with pytest.raises(UserError, match="no weights tagged 'dyno'") as caught:
        create_backbone("vit_small_patch16_224.dyno", 64)
    assert "dino" in caught.value.fix


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224",
                                  "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_backbones_that_cannot_serve_are_refused_with_alternatives(name):
    with pytest.raises(UserError, match="cannot carry class tokens") as caught:
        create_backbone(name, 64)
    assert "vit_base_patch16_224" in caught.value.fix


def test_weights_of_another_backbone_are_refused(tmp_path):
    path = tmp_path / "vit.safetensors"
    vit_file(path)
    with pytest.raises(UserError) as caught:
        build(path, vit={**SIZES, "embed_dim": 36})
    text = str(caught.value)
    assert str(path) in text and "shape [" in text and "the model needs [" in text
    with pytest.raises(UserError, match=r"patch_embed.proj.weight .*\[24, 3, 8, 8\].*\[24, 3, 4"):
        build(path, vit={**SIZES, "patch_size": 4})
    with pytest.raises(UserError, match="tensors missing: blocks.4"):
        build(path, vit={**SIZES, "depth": 6})
    with pytest.raises(UserError, match="not in the model: blocks.3"):
        build(path, vit={**SIZES, "depth": 3})


def test_positions_that_are_no_square_are_refused(tmp_path):
    path = tmp_path / "vit.safetensors"
    vit_file(path, pos_embed=torch.zeros(1, 8, SIZES["embed_dim"]))
    with pytest.raises(UserError, match="8 vectors, which is no square"):
        build(path)


@pytest.mark.parametrize(("count", "extra", "advice"), [
    (6, {}, r"grid of 2×2: choose the backbone .* 1 registers \(…_reg1_…\) or a distillation"),
    (6, {"dist_token": torch.zeros(1, 1, 24)}, "a position for a distillation token"),
    (14, {}, r"grid of 3×3: choose the backbone .* with 4 registers \(…_reg4_…\)$"),
    (40, {}, r"grid of 6×6: .* 3 registers")])
def test_the_advice_on_positions_fits_what_the_file_holds(tmp_path, count, extra, advice):
    vit_file(tmp_path / "vit.safetensors", pos_embed=torch.zeros(1, count, SIZES["embed_dim"]),
             **extra)
    with pytest.raises(UserError) as caught:
        build(tmp_path / "vit.safetensors")
    assert re.search(advice, caught.value.fix), caught.value.fix


@pytest.mark.parametrize("wrap", [
    lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()},
                   "student": {f"backbone.{k}": 0 * v for k, v in state.items()}, "epoch": 3},
    lambda state: {"student": {f"module.{k}": v for k, v in state.items()}},
    lambda state: {f"student.backbone.{k}": 0 * v for k, v in state.items()} | {
        f"teacher.backbone.{k}": v for k, v in state.items()},
    lambda state: {f"model.{k}": v for k, v in state.items()},
    lambda state: {"state_dict": {f"module.encoder.{k}": v for k, v in state.items()}
                   | {"classifier.weight": torch.zeros(3, 3)}},
    lambda state: {f"backbone.{k}": v for k, v in state.items()}
    | {"head.weight": torch.zeros(2, 2)}],
    ids=["teacher and student", "student", "flat teacher", "model.", "module.encoder.",
         "backbone."])
def test_plain_wrappings_and_prefixes_are_taken_off(tmp_path, wrap):
    state = vit_file(tmp_path / "vit.safetensors")
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    encoder = build(tmp_path / "wrapped.pth").encoder
    assert torch.equal(encoder.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    assert torch.equal(encoder.cls_token, state["cls_token"].expand_as(encoder.cls_token))


def test_the_message_names_what_the_file_holds_and_what_was_wanted(tmp_path):
    state = vit_file(tmp_path / "vit.safetensors")
    foreign = {f"layers.{k}": v for k, v in state.items()}
    save_file(foreign, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError) as caught:
        build(tmp_path / "foreign.safetensors")
    text = str(caught.value)
    assert f"It holds {len(state)} tensors (layers." in text and "wanted are" in text
    assert "(patch_embed.proj" in text or "blocks.0." in text


@pytest.mark.parametrize("name", ["blocks.2.mlp.fc1.weight", "pos_embed", "cls_token"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value):
    state = vit_file(tmp_path / "vit.safetensors")
    state[name].view(-1)[3] = value
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=f"tensor {name} holds 1 values of .* not finite"):
        build(tmp_path / "vit.safetensors")


class Foreign:
    """An object that a weights file must not hold."""


def test_unreadable_files_are_refused(tmp_path):
    torch.save({"model": Foreign()}, tmp_path / "foreign.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "weights.h5").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name, words in {"foreign.pth": "objects other than tensors",
                        "broken.safetensors": "cannot be read", "short.pth": "short.pth",
                        "weights.h5": "unknown ending", "empty.pth": "no named tensors",
                        "absent.pth": "does not exist"}.items():
        with pytest.raises(UserError, match=words) as caught:
            build(tmp_path / name)
        assert name in str(caught.value) and caught.value.fix


def test_hub_failures_name_the_cure(monkeypatch):
    with pytest.raises(UserError, match="no pretrained weights"):
        micro_network(weights="timm")

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="no route to host") as caught:
        hub_state("vit_tiny_patch16_224")
    assert "model.weights=PATH" in caught.value.fix


def test_normalisation_is_the_backbones_own():
    mean, std = backbone_normalisation("vit_small_patch14_dinov2")
    assert mean == pytest.approx((123.675, 116.28, 103.53))
    assert std == pytest.approx((58.395, 57.12, 57.375))
    assert backbone_normalisation("vit_tiny_patch16_224.augreg_in21k")[0] == (127.5,) * 3
    assert backbone_normalisation("custom")[0] == pytest.approx((123.675, 116.28, 103.53))


@torch.no_grad()
def test_dinov2_file_in_half_precision():
    path = WEIGHTS / "vit_small_patch14_dinov2.safetensors"
    if not path.is_file():
        pytest.skip(f"weights absent: {path} (set MORE_WEIGHTS to their folder)")
    network = build_network(ModelConfig(backbone="vit_small_patch14_dinov2", weights=path,
                                        decoder_width=8), 70).eval()
    state = load_file(path)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    gamma = network.encoder.blocks[3].ls1.gamma
    assert torch.equal(gamma, state["blocks.3.ls1.gamma"].float())
    assert network.encoder.pos_embed.shape[1] == 24 + 25
    # The plain ViT at the same size, its positions resized our way, sees the same patches.
    single = build_network(ModelConfig(backbone="vit_small_patch14_dinov2", num_classes=1,
                                       weights=path, regularising_tokens=0), 70).eval()
    vit = create_backbone("vit_small_patch14_dinov2", 70).eval()
    vit.load_state_dict({**single.encoder.state_dict()})
    tokens = vit.forward_features(images(1, 70, 70))
    torch.testing.assert_close(single.encoder(images(1, 70, 70)).patch_tokens, tokens[:, 1:])


def test_arguments_that_do_not_fit_a_named_backbone_are_named():
    with pytest.raises(UserError, match="112 pixels and model.vit_kwargs: .+"):
        create_backbone("vit_small_patch16_224", 112, {"patch_size": "none"})
