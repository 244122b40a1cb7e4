"""Predicted activations against what the CPU's allocator hands out in a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from more.config.load import load_config
from more.method.cam import PresentMaps, present_classes
from more.method.labels import Batch
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.plan.activations import autocast, step_activations
from more.plan.live_bytes import LiveBytes
from more.train.cams import CamMaker
from more.train.stage_one import in_float32

IMAGES = 3


def settings(tiny, **overrides):
    values = {"data.crop": 112, "loss.start.seg": -1, "loss.start.energy": -1,
              "cam.scales": (1.0, 0.5, 1.5), **overrides}
    vit = {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
    config = load_config(tiny["config"], [f"{key}={value}" for key, value in values.items()])
    return replace(config, model=replace(config.model, vit=vit))


def allocated(work) -> tuple[int, int]:
    """(most, left) bytes of the CPU's allocator while `work` runs, above what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = work()
    events = [event for event in found.profiler.kineto_results.events()
              if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most, now


class RealStep:
    """A step on drawn numbers; gradients of weights are dropped as they come."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.config, self.network = config, make_network(config).train()
        kind = torch.bfloat16 if config.precision == "bf16_weights" else torch.float32
        for parameter in self.network.parameters():
            parameter.data = parameter.data.to(kind)
        self.objective, crop = make_objective(config), config.data.crop
        self.images = torch.randn(IMAGES, 3, crop, crop)
        self.inputs = self.images.to(kind)
        self.tags = torch.zeros(IMAGES, config.model.num_classes)
        self.tags[:, :3] = 1
        for parameter in self.network.parameters():
            parameter.register_post_accumulate_grad_hook(self._drop)

    @staticmethod
    def _drop(parameter):
        parameter.grad = None

    def run(self, images, mode="train", half=False):
        with autocast(self.config.precision == "bf16"):
            return self.network(images, mode=mode, half=half)

    def forward(self):
        return in_float32(self.run(self.inputs))

    def whole(self, views=True):
        output = self.forward()
        if views:
            make = CamMaker(self.config, self.run, self.objective, 8)
            cams = make(self.inputs, self.tags, output, 0)
        else:  # as training makes them: of the present classes alone
            crop, (numbers, valid) = self.config.data.crop, present_classes(self.tags)
            cams = [PresentMaps(torch.rand(*numbers.shape, crop, crop), numbers, valid)
                    for _ in range(2)]
        terms = self.objective(output, Batch(images=self.images, tags=self.tags, cams=cams[0],
                                             aux_cams=cams[1]), 0)
        terms["total"].backward()


KEPT = {"model.recompute_cheap": False}
BLOCKS = {"model.gradient_checkpointing": True}


@pytest.mark.parametrize(("precision", "options"), [
    ("fp32", {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in
                    (("fp32", KEPT), ("fp32", BLOCKS), ("bf16", {}), ("bf16", KEPT),
                     ("bf16", BLOCKS), ("bf16_weights", {}), ("bf16_weights", KEPT)))])
def test_the_prediction_is_what_a_step_takes(tiny, precision, options):
    config = settings(tiny, precision=precision, **options)
    found, step = step_activations(config, IMAGES), RealStep(config)
    step.whole()  # what the first step alone makes
    forward, kept = allocated(step.forward)
    assert found.kept == pytest.approx(kept, rel=0.02)
    assert found.forward == pytest.approx(forward, rel=0.03)
    most, left = allocated(step.whole)
    assert found.peak == pytest.approx(most, rel=0.03)
    assert left < 0.02 * most
    most, _ = allocated(lambda: step.whole(views=False))
    assert max(found.forward, found.losses, found.backward) == pytest.approx(most, rel=0.03)


def test_what_is_saved_for_backward_is_what_autograd_saves(tiny):
    config, storages = settings(tiny, **KEPT), {}  # else blocks have hooks of their own
    step = RealStep(config)
    weights = {p.untyped_storage().data_ptr() for p in step.network.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | {step.images.untyped_storage().data_ptr()}:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = step.forward()
    for value in output:  # outputs live whether or not they are saved
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    assert step_activations(config, IMAGES).kept == pytest.approx(sum(storages.values()), rel=0.02)


def test_recomputed_blocks_and_bf16_keep_less(tiny):
    plain, cheap, half, again = (step_activations(settings(tiny, **options), IMAGES)
                                 for options in (KEPT, {}, {**KEPT, "precision": "bf16"}, BLOCKS))
    assert cheap.kept < 0.7 * plain.kept
    assert again.kept < 0.4 * plain.kept and half.kept < 0.8 * plain.kept
    assert again.backward > again.kept and plain.peak >= plain.losses > plain.kept
    double = step_activations(settings(tiny, **KEPT), 2 * IMAGES)
    assert double.kept == pytest.approx(2 * plain.kept, rel=0.02)


def test_live_bytes_of_known_tensors():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]  # no memory of its own
        a.add_(1)
        c = torch.cat([a, a])
        assert live.now == live.peak == 12000
        del c
        assert live.now == 4000 and live.peak == 12000
        live.restart()
        del a
        assert live.now == 4000 == live.peak  # the view still holds it
        del b
        assert live.now == 0
