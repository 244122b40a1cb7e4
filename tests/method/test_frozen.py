"""Frozen blocks: run alone they give what the whole gives, and no gradient reaches them."""

import pytest
import torch

from more.errors import UserError
from more.method.network import parameter_groups, train_only
from more.train.frozen_tokens import frozen_digest
from tests.method.micro import SIDE, images, micro_network

DEPTH, PATCHES = 4, 25
KINDS = {"released": {}, "shared": {"token_attention": "shared"}, "above": {"frozen_blocks": 1}}


def network(kind="released"):
    return micro_network(**KINDS[kind])


@torch.no_grad()
@pytest.mark.parametrize("frozen", [1, 2, 3, DEPTH])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_blocks_and_then_the_others_are_the_encoder(kind, frozen):
    encoder = network(kind).encoder
    whole, tokens = encoder(images()), encoder.lower(images(), frozen)
    assert tokens.shape == (2, encoder.token_count(PATCHES, frozen), encoder.embed_dim)
    for found in (encoder(tokens, frozen=frozen), encoder(images(), frozen=frozen)):
        assert torch.equal(found.patch_tokens, whole.patch_tokens) and found.grid == (5, 5)
        if frozen < DEPTH:
            assert torch.equal(found.class_tokens, whole.class_tokens)
        else:
            assert found.class_tokens is None
        if frozen <= encoder.aux_index:
            assert torch.equal(found.aux_patch_tokens, whole.aux_patch_tokens)
        else:
            assert found.aux_patch_tokens is None


@torch.no_grad()
@pytest.mark.parametrize(("kind", "frozen", "leading"), [
    ("released", 1, 9), ("released", 3, 9), ("released", DEPTH, 0), ("above", 1, 1),
    ("above", 2, 9), ("above", DEPTH, 0)])
def test_how_many_tokens_are_kept(kind, frozen, leading):
    encoder = network(kind).encoder
    assert encoder.token_count(PATCHES, frozen) == PATCHES + leading
    assert encoder.lower(images(1), frozen).shape[1] == PATCHES + leading


@torch.no_grad()
def test_frozen_blocks_run_once():
    encoder, ran = network().encoder, []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    encoder.lower(images(), 3)
    assert ran == [0, 1, 2]
    ran.clear()
    encoder(encoder.lower(images(), 3), frozen=3)
    assert ran == [0, 1, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("frozen", [2, DEPTH])
def test_tokens_in_sixteen_bits_change_little(frozen):
    """What a store keeps: rounding of 1e-3 at most, where another image differs by as much as
    the logits themselves."""
    model = network()
    tokens = model.encoder.lower(images(), frozen)
    exact, rounded, other = (model(value, mode="segment", frozen=frozen) for value in (
        tokens, tokens.half().float(), tokens.flip(0)))
    assert (rounded - exact).abs().max() < 3e-3 * exact.abs().max()
    assert (other - exact).abs().max() > 0.1 * exact.abs().max()


def trained(model) -> set[str]:
    """Parts whose parameters have a gradient: decoder, norm, numbers of blocks, other names."""
    found = set()
    for name, value in model.named_parameters():
        if value.grad is not None:
            parts = name.removeprefix("encoder.").split(".")
            found.add(parts[1] if parts[0] == "blocks" else parts[0])
    return found


@pytest.mark.parametrize(("kind", "blocks", "frozen", "parts"), [
    ("released", 0, 4, {"decoder"}), ("released", 1, 3, {"3", "norm", "decoder"}),
    ("released", 2, 2, {"2", "3", "norm", "decoder"}),
    ("released", 4, 0, {"0", "1", "2", "3", "norm", "decoder"}),
    ("released", -1, 0, {"0", "1", "2", "3", "norm", "decoder", "patch_embed", "cls_token",
                         "pos_embed"}),
    ("above", 3, 1, {"1", "2", "3", "norm", "decoder"}),
    ("above", -1, 0, {"0", "1", "2", "3", "norm", "decoder", "patch_embed", "cls_token",
                      "pos_embed"})])
def test_only_what_is_said_is_trained(kind, blocks, frozen, parts):
    model = network(kind)
    assert train_only(model, blocks) == frozen
    asked = {name for name, value in model.named_parameters() if value.requires_grad}
    inputs = [images()] + ([model.encoder.lower(images(), frozen)] if frozen else [])
    for given in inputs:
        model.zero_grad()
        model(given, mode="segment", frozen=frozen).square().sum().backward()
        assert trained(model) == parts
        assert {n for n, value in model.named_parameters() if value.grad is not None} == asked
    grouped = [p for group in parameter_groups(model) for p in group["params"]]
    assert {id(p) for p in grouped} == {
        id(p) for p in model.parameters() if p.requires_grad} and len(grouped) == len(asked)
    assert all(group["params"] for group in parameter_groups(model))


@pytest.mark.parametrize("frozen", [1, 2, DEPTH])
def test_no_gradient_reaches_frozen_blocks_even_if_they_ask_for_one(frozen):
    model = network()
    model(images(), mode="segment", frozen=frozen).square().sum().backward()
    above = {str(number) for number in range(frozen, DEPTH)}
    assert trained(model) == {"decoder", *above, *(["norm"] if above else [])}


@pytest.mark.parametrize("how", ["plain", "recompute_cheap", "grad_checkpointing"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_above_frozen_blocks_are_those_of_the_whole(kind, how):
    """From images and from tokens, whatever is made again in the backward pass."""
    model = network(kind)
    model(images(), mode="segment").square().sum().backward()
    whole = {name: value.grad for name, value in model.named_parameters()}
    if how != "plain":
        getattr(model.encoder, f"set_{how}")(True)
    frozen = train_only(model, 2)
    for given in (images(), model.encoder.lower(images(), frozen)):
        model.zero_grad()
        model(given, mode="segment", frozen=frozen).square().sum().backward()
        for name, value in model.named_parameters():
            if value.requires_grad:
                torch.testing.assert_close(value.grad, whole[name], rtol=1e-4, atol=1e-5)


def test_more_blocks_than_there_are_cannot_be_trained():
    with pytest.raises(UserError, match="segment.blocks = 5, but the backbone has 4") as caught:
        train_only(network(), 5)
    assert "0 to 4, or -1" in caught.value.fix
    with pytest.raises(UserError, match="below the class tokens lie 1 blocks of 4") as caught:
        train_only(network("above"), 4)
    assert "0 to 3, or -1" in caught.value.fix


@torch.no_grad()
@pytest.mark.parametrize("name", [
    "patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.bias",
    "blocks.1.attn.qkv.weight"])
def test_the_digest_of_frozen_blocks_knows_every_weight_in_them(name):
    model = network()
    before, same = frozen_digest(model, 2), frozen_digest(network(), 2)
    assert before == same
    model.get_parameter(f"encoder.{name}").view(-1)[-1] += 1e-3
    assert frozen_digest(model, 2) != before


@torch.no_grad()
@pytest.mark.parametrize("name", [
    "encoder.blocks.2.mlp.fc1.bias", "encoder.blocks.3.attn.qkv.weight", "encoder.norm.weight",
    "decoder.conv8.weight", "classifier.weight"])
def test_the_digest_of_frozen_blocks_knows_nothing_above_them(name):
    model = network()
    before = frozen_digest(model, 2)
    model.get_parameter(name).view(-1)[-1] += 1e-3
    assert frozen_digest(model, 2) == before


@torch.no_grad()
def test_the_digest_below_the_class_tokens_does_not_know_them():
    model = network("above")
    before = [frozen_digest(model, frozen) for frozen in (1, 2)]
    model.encoder.cls_token[0, 0, 0] += 1e-3
    after = [frozen_digest(model, frozen) for frozen in (1, 2)]
    assert after[0] == before[0] and after[1] != before[1]
    model.encoder.prefix[0, 0, 0] += 1e-3
    assert frozen_digest(model, 1) != after[0]


@torch.no_grad()
def test_with_all_blocks_frozen_the_digest_knows_the_norm():
    model = network()
    before = frozen_digest(model, DEPTH)
    model.encoder.norm.bias[0] += 1e-3
    assert frozen_digest(model, DEPTH) != before


@torch.no_grad()
def test_images_of_another_size_run_through_frozen_blocks():
    model = network()
    wide = images(2, SIDE, 2 * SIDE)
    for frozen in (2, DEPTH):
        assert torch.equal(model(wide, mode="segment", frozen=frozen),
                           model(wide, mode="segment"))
