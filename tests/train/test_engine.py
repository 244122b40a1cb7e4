"""Batch split, optimiser groups, DeepSpeed's dict and early checks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from more.config.load import load_config
from more.errors import UserError
from more.filtering.gaussian_attention import attention_filter
from more.method.losses.energy import energy_filter
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.train import engine
from more.train.deepspeed_settings import deepspeed_dict, merged, split_batch
from more.train.distributed import World, import_deepspeed
from more.train.engine import make_optimizer, make_plan, same_buffers


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 9))
def test_split_always_gives_the_global_batch(world, share, limit):
    split = split_batch(world * share, world, limit)
    assert split.micro * split.accumulation * world == world * share
    assert not limit or split.micro <= limit


def test_a_batch_that_does_not_divide_is_refused_before_any_work():
    with pytest.raises(UserError, match="train.global_batch = 5"):
        split_batch(5, 2)


def test_gradient_clipping_is_written_even_when_off(tiny):
    config = load_config(tiny["config"])
    assert deepspeed_dict(config, split_batch(4, 1))["gradient_clipping"] == 0.0


@pytest.mark.parametrize(("content", "named", "ours"), [
    ({"optimizer": {"type": "Adam", "params": {"lr": 1}}}, "optimizer", "optim.lr"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "optim.warmup"),
    ({"amp": {"enabled": True}}, "amp", "precision"), ({"fp16": {"enabled": True}}, "fp16.enabled",
                                                       "precision"),
    ({"train_batch_size": 8}, "train_batch_size", "train.global_batch"),
    ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "deepspeed.zero_stage")])
def test_what_our_settings_decide_is_refused_in_a_deepspeed_json(tiny, tmp_path, content, named,
                                                                ours):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        deepspeed_dict(load_config(tiny["config"], [f"deepspeed.json={file}"]), split_batch(4, 1))
    assert f"sets {named}, which follows from {ours}" in caught.value.message
    assert ours in caught.value.fix


def test_other_sections_of_a_deepspeed_json_are_merged(tiny, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"round_robin_gradients": True},
                                "fp16": {"loss_scale_window": 5}}))
    made = deepspeed_dict(load_config(tiny["config"], [f"deepspeed.json={file}"]),
                          split_batch(4, 1))
    assert made["zero_optimization"]["round_robin_gradients"] and made["zero_optimization"]["stage"]
    assert made["fp16"] == {"enabled": False, "loss_scale_window": 5}


def test_rank_0s_buffers_are_sent_to_every_rank(tiny, monkeypatch):
    """The centre of competitive heads is one; each rank makes its own in the head warm-up."""
    network, sent = make_network(load_config(tiny["config"], ["model.pooling=competitive"])), []
    monkeypatch.setattr(torch.distributed, "broadcast",
                        lambda tensor, src: (sent.append(src), tensor.fill_(7.0)))
    same_buffers(network, World(0, 1, 0, 1, torch.device("cpu")))
    assert not sent
    same_buffers(network, World(1, 2, 1, 2, torch.device("cpu")))
    assert sent == [0] * len(list(network.buffers())) and len(sent) >= 2
    assert bool((network.contest.centre == 7).all() and (network.aux_contest.centre == 7).all())


def test_a_run_sends_its_buffers_after_the_head_warm_up(tiny, monkeypatch):
    order = []
    world = World(0, 1, 0, 1, torch.device("cpu"))
    monkeypatch.setattr(engine, "same_buffers", lambda *_: order.append("buffers"))

    class Stage:
        pretrained = True

        def begin(self, network, say):
            order.append("warm-up")

        def prepare(self, network, say):
            raise InterruptedError  # far enough

    with pytest.raises(InterruptedError):
        engine.make_engine(load_config(tiny["config"]), split_batch(4, 1), world, Stage(), print,
                          None)
    assert order == ["warm-up", "buffers"]
@pytest.mark.parametrize("named", [False, True])
def test_bf16_sums_gradients_over_ranks_in_fp32(tiny, monkeypatch, named):
    """What DeepSpeed's ZeRO 1 to 3 choose buckets by; layers named in deepspeed.json use bf16."""
    import_deepspeed()
    from deepspeed.runtime import config as settings
    from deepspeed.runtime import torch_autocast as autocast

    for name in ("TORCH_AUTOCAST_INITIALIZED", "TORCH_AUTOCAST_DTYPE"):
        monkeypatch.setattr(autocast, name, getattr(autocast, name))
    config = load_config(tiny["config"], ["precision=bf16"])
    found = deepspeed_dict(config, split_batch(4, 1))
    if named:
        found = merged(found, {"torch_autocast": {
            "lower_precision_safe_modules": ["torch.nn.Linear"]}})
    network = make_network(config)
    engine = SimpleNamespace(module=network, zero_quantized_weights=lambda: False)
    autocast.init_autocast_params(engine, torch.bfloat16,
                                  settings.get_lower_precision_safe_modules(found))
    expected = {torch.float32, torch.bfloat16} if named else {torch.float32}
    assert autocast.get_all_comm_dtypes(network.parameters()) == expected


@pytest.mark.parametrize("theirs", [{"bf16": {"enabled": False}}, {"bf16": {
    "bf16_master_weights_and_grads": True}}, {"data_types": {"param_dtype": "fp32"}}])
def test_deepspeeds_own_settings_of_precision_are_refused(tiny, theirs):
    ours = deepspeed_dict(load_config(tiny["config"], ["precision=bf16_weights"]),
                          split_batch(4, 1))
    with pytest.raises(UserError, match="follows from precision"):
        merged(ours, theirs)


def test_every_parameter_is_in_one_group(tiny):
    for overrides in ([], ["optim.frozen_steps=2"], ["model.graph=false"],
                      ["optim.token_lr_scale=5"]):
        config = load_config(tiny["config"], overrides)
        network = make_network(config)
        groups = make_optimizer(config, network).param_groups
        listed = [id(p) for group in groups for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in network.parameters())
    assert [g["name"] for g in groups][0] == "tokens"
    assert groups[0]["lr"] == pytest.approx(5 * config.optim.lr)


def test_released_groups_and_rates(tiny):
    config = load_config(tiny["config"])
    groups = make_optimizer(config, make_network(config)).param_groups
    assert [(g["name"], round(g["lr"] / config.optim.lr), g["weight_decay"]) for g in groups] == [
        ("encoder", 1, 0.01), ("encoder_norm", 1, 0.01), ("classifiers", 10, 0.01),
        ("graph", 10, 0.01), ("decoder", 10, 0.01)]


def test_a_grid_too_small_for_the_uncertain_region_term_is_refused(tiny):
    with pytest.raises(UserError, match="6×6"):
        make_network(load_config(tiny["config"], ["data.crop=48"]))
    make_network(load_config(tiny["config"], ["data.crop=48", "loss.weights.ure=0"]))


@pytest.mark.parametrize("override", ["inference.size=4", "inference.scales=(1.0,0.1)",
                                      "cam.scales=(1.0,0.1)"])
def test_a_view_smaller_than_a_patch_is_refused_before_training(tiny, override):
    with pytest.raises(UserError, match="less than a patch of 8"):
        make_network(load_config(tiny["config"], [override]))


def test_regularising_tokens_may_start_at_zero(tiny):
    network = make_network(load_config(tiny["config"], ["model.regularising_std=0.0"]))
    assert not network.encoder.pos_embed[:, :4].any()


def test_the_objective_takes_the_filter_that_is_named(tiny):
    chosen = [make_objective(load_config(tiny["config"], overrides)).filter for overrides in (
        [], ["loss.energy_filter=lattice"], ["loss.energy_filter=attention"])]
    assert chosen == [energy_filter("lattice")] * 2 + [attention_filter]
    with pytest.raises(UserError, match="loss.energy_filter = 'exact'"):
        load_config(tiny["config"], ["loss.energy_filter=exact"])


@pytest.mark.parametrize(("order", "count", "local"), [
    ("auto", 3, False), ("auto", 65, True), ("global", 65, False), ("shards", 3, True)])
def test_large_sets_are_read_shard_by_shard(tiny, order, count, local):
    class Shards:
        shard_rows = [4] * count

        def __len__(self):
            return 4 * count

    plan = make_plan(load_config(tiny["config"], [f"data.order={order}"]), Shards())
    assert (plan.shard_rows is not None) == local
