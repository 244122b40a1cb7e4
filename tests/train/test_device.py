"""No tensor of an update stays on the CPU, whichever options are chosen (see `claimed_gpu`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from more.config.load import config_from_dict
from more.data.shards.reader import ShardSet
from more.method.make_network import make_network
from more.train import warm_up
from more.train.average import WeightAverage
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World
from more.train.engine import make_optimizer
from more.train.optimizer import poisoned
from more.train.stage_one import TagStage
from more.train.stage_two import MaskStage
from more.train.validation import validate
from tests.claimed_gpu import GPU, OnGpu, WrongDevice, claimed_gpu, put_on
from tests.data.sets import mask_set, small_set
from tests.train.test_mask_stage import SETTINGS, Engine

CPU = torch.device("cpu")
LATE = {"late_after": 1}  # of update 2, which is run here
SOON = {"start": {"seg": 0, "energy": 0}}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


def settings(stage: int = 1, **sections):
    both = {**SETTINGS, "stage": stage, **sections}
    return config_from_dict({**both, **{
        name: {**SETTINGS.get(name, {}), **values} for name, values in sections.items()
        if isinstance(values, dict)}})


def world(device: torch.device) -> World:
    return World(0, 1, 0, 1, device)


def updated(stage, network, config) -> tuple[dict[str, torch.Tensor], WeightAverage | None]:
    """The terms of an update as the trainer makes it, with the engine's optimiser."""
    network.train()
    engine = Engine(network)
    engine.optimizer = make_optimizer(config, network)
    average = WeightAverage(engine, config.train.ema) if config.train.ema else None
    stage.connect(engine, average)
    batch = next(iter(stage.batches(split_batch(4, 1), 0)))
    terms, anchor = next(stage.terms([stage.taken(batch)], 2))
    poisoned(terms["total"], anchor).backward()
    engine.optimizer.step()
    if average is not None:
        average.update()
    return {name: value.detach().cpu() for name, value in terms.items()}, average


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


OPTIONS = {
    "as released": {},
    "paper": {"variant": "paper"},
    "paper, late": {"variant": "paper", "cam": LATE},
    "paper, decoder": {"variant": "paper", "cam": LATE, "loss": SOON},
    "decoder": {"loss": SOON},
    "decoder, late, no padding": {"cam": LATE, "loss": {**SOON, "exclude_padding": True}},
    "energy by attention": {"loss": {**SOON, "energy_filter": "attention"}},
    "mixed decorrelation": {"loss": {"mcl_form": "mixed"}},
    "CAMs now and then": {"cam": {"every": 3, "whole_patches": True}},
    "CAMs in half": {"cam": {**LATE, "precision": "bf16"}},
    "average": {"cam": {"ema": True}, "train": {"ema": 0.9}},
    "competitive": {"model": {"pooling": "competitive"}},
    "shared attention": {"model": {"token_attention": "shared"}},
    "frozen blocks": {"model": {"frozen_blocks": 1}, "tokens": {"gb": 0.0}},
    "tokens of frozen blocks": {"model": {"frozen_blocks": 1}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "recomputed norms": {"model": {"recompute_cheap": True}},
    "no graph": {"model": {"graph": False}},
    "pixels from PIL": {"data": {"pipeline": "pil"}},
    "frozen steps": {"optim": {"frozen_steps": 2}},
    "ZeRO 0": {"deepspeed": {"zero_stage": 0}},
}


def sections_of(options: dict) -> dict:
    loss = dict(options.get("loss", {}))
    return {**options, "loss": loss,
            "model": {**SETTINGS["model"], **options.get("model", {})},
            "cam": {"scales": (1.0, 0.5, 1.25), **options.get("cam", {})}}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_update_on_tags_leaves_nothing_on_the_cpu(images, tmp_path, name):
    config, found = settings(1, **sections_of(OPTIONS[name])), {}
    for device in (CPU, GPU):
        torch.manual_seed(0)
        stage = TagStage(config, ShardSet(images), tmp_path / device.type, world(device))
        with claimed_gpu():
            network = make_network(config)
            network = put_on(network) if device == GPU else network
            stage.prepare(network, print)
            found[device], average = updated(stage, network, config)
        if device == GPU:
            assert all(isinstance(value, OnGpu) for value in network.state_dict().values())
            assert average is None or all(isinstance(v, OnGpu) for v in average.values)
    same(found[GPU], found[CPU])
    active = [term for term in ("cre", "ure", "ptc") if found[GPU][term] != 0]
    assert active, "the test sees no term that is made from CAMs"


@pytest.mark.parametrize("segment", [
    {}, {"blocks": 2, "confidence": "weight", "tags": 0.3, "stride": 2},
    {"blocks": -1, "loss": "plain", "ignore_below": 0.4}])
def test_an_update_on_masks_leaves_nothing_on_the_cpu(images, tmp_path, segment):
    masks, found = mask_set(tmp_path / "masks", images), {}
    config = settings(2, segment=segment)
    for device in (CPU, GPU):
        stage = MaskStage(config, ShardSet(images), ShardSet(masks), tmp_path / device.type,
                          world(device))
        with claimed_gpu():
            network = make_network(config)
            network = put_on(network) if device == GPU else network
            stage.prepare(network, print)
            found[device], _ = updated(stage, network, config)
    same(found[GPU], found[CPU])


@pytest.mark.parametrize("pooling", ["max", "competitive"])
def test_warm_up_and_evaluation_leave_nothing_on_the_cpu(images, pooling):
    config = settings(1, model={**SETTINGS["model"], "pooling": pooling},
                      head_warmup={"updates": 2, "batch": 4, "images": 6})
    data, found = ShardSet(images), {}
    for device in (CPU, GPU):
        torch.manual_seed(0)
        with claimed_gpu():
            network = make_network(config)
            network = put_on(network) if device == GPU else network
            terms = warm_up.warm_heads(network, data, config, quiet=True)
            found[device] = {**terms, **validate(network, data, config, world(device))}
    assert found[GPU] == pytest.approx(found[CPU], rel=1e-3)


def test_the_claimed_gpu_refuses_what_a_gpu_refuses():
    with claimed_gpu():
        ours = torch.ones(3, device="cuda")
        assert ours.device == GPU and ours.is_cuda and (2 * ours).sum().item() == 6
        assert (ours + torch.tensor(1.0)).device == GPU, "a single number may come from the CPU"
        for mixed in (lambda: ours + torch.ones(3), lambda: torch.ones(3) * ours,
                      lambda: torch.ones(3)[ours.long()], lambda: ours.add_(torch.ones(3)),
                      lambda: torch.stack([ours, torch.ones(3)])):
            with pytest.raises(WrongDevice, match="one on the CPU"):
                mixed()
        with pytest.raises(WrongDevice, match="numpy"):
            ours.numpy()
        leaf = torch.ones(3).to(GPU).requires_grad_()
        (leaf.square().sum() * 2).backward()
        assert leaf.grad.device == GPU and leaf.grad.tolist() == [4, 4, 4]
