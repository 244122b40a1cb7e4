"""Outputs that are made again in backward: the same numbers from fewer bytes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from more.config.load import load_config
from more.method import encoder as encoder_module
from more.method.gradients import keep_less
from more.method.make_network import make_network
from more.plan.live_bytes import LiveBytes
from tests.method.micro import SIZES, images, micro_network

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "shapes_micro.py"
SMALL = {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
VARIANTS = {
    "micro": {},
    "small": {"vit": SMALL},
    "shared": {"token_attention": "shared"},
    "layer scale": {"vit": {**SIZES, "init_values": 0.1}},
    "normed heads": {"vit": {**SIZES, "qk_norm": True}},
    "normed MLP": {"vit": {**SIZES, "scale_mlp_norm": True}},
    "gated": {"vit": {**SIZES, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}},
    "ReLU": {"vit": {**SIZES, "act_layer": nn.ReLU}},
    "dropped": {"vit": {**SIZES, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}},
}


def half(enabled: bool):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def step(network, cheap: bool, bf16: bool = False, **options):
    """Outputs and gradients of a step; the encoder alone where it has options."""
    network.encoder.set_recompute_cheap(cheap)
    network.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    with half(bf16):
        outputs = network.encoder(images(), **options) if options else network(images())
    tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
    sum(value.float().square().sum() for value in tensors if value.requires_grad).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return [value.detach() for value in tensors], gradients


def assert_same(first, second):
    for one, two in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)
    assert sum(gradient is not None for gradient in first[1]) > 20


def kept(encoder, size: int, bf16: bool) -> int:
    """Bytes that live between forward and backward."""
    with LiveBytes() as live, half(bf16):
        output = encoder(images(4, size, size))
        found = live.now
    del output
    return found


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_result_changes_by_a_bit(variant, bf16):
    network = micro_network(**VARIANTS[variant]).train()
    assert_same(step(network, True, bf16), step(network, False, bf16))


@pytest.mark.parametrize("options", [{"with_attention": True}, {"only_aux": True}])
def test_other_calls_of_the_encoder_do_not_change(options):
    network = micro_network()
    assert_same(step(network, True, **options), step(network, False, **options))


@pytest.mark.parametrize(("variant", "bf16", "share"), [
    ("small", False, 0.68), ("small", True, 0.72), ("layer scale", False, 0.72),
    ("gated", False, 0.85), ("ReLU", False, 0.9)])
def test_less_is_kept(variant, bf16, share):
    """Of the 16·D numbers 6·D; in bf16 (24 of 72 bytes) casts of the weights are kept as well."""
    encoder = micro_network(**VARIANTS[variant]).encoder
    plain = kept(encoder, 160, bf16)
    encoder.set_recompute_cheap()
    assert kept(encoder, 160, bf16) < share * plain


def test_nothing_is_left_behind():
    network = micro_network()
    network.encoder.set_recompute_cheap()
    gc.disable()  # what only a collection finds would live until then
    try:
        with LiveBytes() as live:
            output = network(images())
            sum(v.sum() for v in output if v.requires_grad).backward()
            network.zero_grad(set_to_none=True)
            del output
            assert live.now == 0
            network(images())  # never taken back
            assert live.now == 0
    finally:
        gc.enable()
    for module in network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_checkpointed_blocks_do_no_double_work():
    network = micro_network()
    plain, norms, layers = step(network, False), [], []
    block = network.encoder.blocks[1]
    block.norm1.register_forward_hook(lambda *_: norms.append(1))
    block.attn.qkv.register_forward_hook(lambda *_: layers.append(1))
    assert_same(step(network, True), plain)
    assert (len(norms), len(layers)) == (2, 1)  # once more for the weights behind it
    network.encoder.set_grad_checkpointing()
    assert_same(step(network, True), plain)
    assert (len(norms), len(layers)) == (4, 3)


def test_nothing_is_made_of_an_input_that_is_not_kept_anyway():
    class Scaled(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x * 2)  # autograd keeps the product
    block, runs = nn.Sequential(nn.Linear(8, 8), Scaled(8), nn.Linear(8, 8)), []
    block[1].register_forward_hook(lambda *_: runs.append(1))
    run(block).sum().backward()
    assert len(runs) == 1


def test_modules_run_again_as_they_ran():
    """Under the same autocast, without gradients; ZeRO 3's count of inputs is as it was."""
    network, states = micro_network(), []
    norm = network.encoder.blocks[1].norm1

    def look(module, args):
        states.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        module.ds_grads_remaining = 0 if len(states) == 2 else 1
    norm.register_forward_pre_hook(look)
    step(network, True, bf16=True)
    assert states == [(True, True), (True, False)] and norm.ds_grads_remaining == 1


def test_calls_without_gradients_and_compiled_blocks_are_left_alone(monkeypatch):
    used = []

    def spy(block):
        used.append(block)
        return keep_less(block)
    monkeypatch.setattr(encoder_module, "keep_less", spy)
    network = micro_network()
    network.encoder.set_recompute_cheap()
    with torch.no_grad():
        network(images(), mode="cam")
    assert not used
    network(images())
    assert used == list(network.encoder.blocks)
    for block in network.encoder.blocks:
        monkeypatch.setattr(block, "_compiled_call_impl", block._call_impl)  # as `compile` does
    network(images())
    assert len(used) == len(network.encoder.blocks)


class Odd(nn.Module):
    """An MLP that does to its tensors what a test asks for."""

    def __init__(self, between=lambda x, y: y):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.act, self.fc2 = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)
        self.between = between

    def forward(self, x):
        self.inner = self.fc1(x)
        return self.fc2(self.between(self.inner, self.act(self.inner)))


def assert_same_gradients(make):
    """Of a block with `keep_less` and one without."""
    gradients = []
    for keep in (True, False):
        block = make()
        run(block, keep).square().sum().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    assert len(gradients[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def run(block, keep=True):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    if not keep:
        return block(x)
    with keep_less(block):
        return block(x)


def test_an_input_changed_in_place_is_found():
    block = Odd()
    output = run(block)
    with torch.no_grad():
        block.inner.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        output.sum().backward()
    assert block.fc2.weight.grad is None  # not with a wrong input either


def test_a_kept_tensor_changed_in_place_is_found():
    block = Odd()
    output = run(block)
    with torch.no_grad():
        block.fc2.weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("between", [
    lambda x, y: y.mul_(2),  # no longer what the module gave
    lambda x, y: y[1:4],
    lambda x, y: y.view(5, 2, 4).transpose(1, 2).reshape(5, 8),
    lambda x, y: y.t().contiguous().t()], ids=["changed", "part", "mixed", "turned"])
def test_tensors_made_of_an_output_are_not_taken_for_it(between):
    assert_same_gradients(lambda: Odd(between))


def test_an_address_that_comes_back_is_another_tensor():
    """The activation's output is gone before the linear layer gets another tensor in its place."""
    hits = []

    class Forgetful(Odd):
        def forward(self, x):
            self.inner = self.fc1(x)
            place = self.act(self.inner).untyped_storage()._cdata
            tries = [self.inner.detach().clone() for _ in range(200)]
            hits.append([t for t in tries if t.untyped_storage()._cdata == place])
            return self.fc2([*hits[-1], *tries][0]) + self.inner
    assert_same_gradients(Forgetful)
    assert hits[0]  # with `keep_less`


def test_the_setting_is_on_unless_it_is_switched_off():
    assert make_network(load_config(RECIPE)).encoder.recompute_cheap
    off = load_config(RECIPE, ["model.recompute_cheap=False"])
    assert not make_network(off).encoder.recompute_cheap
