"""Scores while training: one forward a batch, in training's precision, counted on the device."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.evaluation.metrics import confusion_matrix, scores
from more.method.cam import minmax
from more.method.labels import cam_to_label
from more.method.make_network import make_network
from more.train import validation as module
from more.train.distributed import ALONE, World
from more.train.validation import validate

ROUTES = ("cam", "lam", "decoder")


@pytest.fixture
def parts(tiny):
    """(network, data, settings by overrides), eight images in batches of three."""
    def settings(*more):
        return load_config(tiny["config"], ["eval.images=0", "inference.batch=3", *more])
    return make_network(settings()), ShardSet(tiny["val"], kind="images"), settings


def watched(network, calls):
    """Note every forward of the encoder: images, and what its blocks compute in."""
    network.encoder.register_forward_hook(
        lambda _, images, out: calls.append((len(images[0]), images[0].dtype)))
    network.encoder.blocks[0].mlp.fc1.register_forward_hook(
        lambda _, given, out: calls.append(out.dtype))


@pytest.mark.parametrize("routes", [ROUTES, ("cam", "lam"), ("decoder",)])
def test_the_encoder_runs_once_a_batch(parts, routes):
    network, data, settings = parts
    calls = []
    watched(network, calls)
    found = validate(network, data, settings(), ALONE, routes)
    assert tuple(found) == routes
    assert [call[0] for call in calls if isinstance(call, tuple)] == [3, 3, 2]


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_it_runs_in_the_precision_of_training(parts, precision, dtype):
    network, data, settings = parts
    calls = []
    watched(network, calls)
    validate(network, data, settings(f"precision={precision}"), ALONE, ROUTES)
    assert {call for call in calls if isinstance(call, torch.dtype)} == {dtype}


def test_bf16_weights_are_scored_without_autocast(parts):
    network, data, settings = parts
    calls = []
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    watched(network, calls)
    validate(network, data, settings("precision=bf16_weights"), ALONE, ROUTES)
    assert set(calls) == {(3, torch.bfloat16), (2, torch.bfloat16), torch.bfloat16}


def plain(network, data, config):
    """The scores written down image by image, each route with a forward of its own."""
    network.eval()
    classes, result = data.num_classes + 1, {}
    with torch.no_grad():
        for name in ROUTES:
            total = torch.zeros(classes, classes, dtype=torch.long)
            for batch in module.make_eval_loader(
                    data, config.inference.size, mean=config.data.mean, std=config.data.std):
                side = batch["images"].shape[-2:]
                if name == "decoder":
                    label = F.interpolate(network(batch["images"], mode="segment"), side,
                                          mode="bilinear").argmax(1)
                else:
                    maps = network(batch["images"], mode="maps")[name]
                    maps = F.interpolate(maps.relu() if name == "cam" else maps, side,
                                         mode="bilinear")
                    at = {"cam": config.cam.background, "lam": config.inference.threshold}[name]
                    label = cam_to_label(minmax(maps), batch["tags"], background=at,
                                         ignore_middle=False)
                truth = batch["masks"][0]
                label = F.interpolate(label[None].float(), truth.shape, mode="nearest")[0, 0]
                total += confusion_matrix(truth, label.byte(), classes)
            result[name] = 100 * scores(total).miou
    return result


def test_the_scores_are_those_image_by_image(parts):
    network, data, settings = parts
    assert validate(network, data, settings(), ALONE, ROUTES) == pytest.approx(
        plain(network, data, settings()), abs=1e-6)


def test_ignored_pixels_count_nowhere():
    totals = torch.zeros(1, 9, dtype=torch.long)
    truth = torch.tensor([[0, 1, 255], [2, 2, 255]], dtype=torch.uint8)
    labels = torch.tensor([[[0, 2, 1], [2, 1, 0]]], dtype=torch.uint8)
    module._count(totals, truth, labels, 3)
    assert torch.equal(totals.view(3, 3), confusion_matrix(truth, labels[0], 3))
    assert totals.sum() == 4


def test_loader_processes_read_the_images(parts, monkeypatch):
    network, data, settings = parts
    asked = []
    real = module.make_eval_loader
    monkeypatch.setattr(module, "make_eval_loader",
                        lambda *args, **options: asked.append(options) or real(*args, **options))
    alone = validate(network, data, settings("data.workers=0"), ALONE, ROUTES)
    assert validate(network, data, settings("data.workers=1"), ALONE, ROUTES) == alone
    assert [options["workers"] for options in asked] == [0, 1]


def test_nothing_waits_for_the_device_between_batches(parts, monkeypatch):
    """Counts stay on the device until the end: the ranks' sum is the only thing read back."""
    network, data, settings = parts
    read = []
    for name in ("cpu", "item", "tolist", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, real=real, name=name, **more:
            read.append((name, self.numel())) or real(self, *args, **more))
    validate(network, data, settings(), ALONE, ROUTES)
    assert read == [("item", 1), ("cpu", 3 * 64), ("numpy", 3 * 64)]  # first: the loader's seed


def test_a_rank_with_fewer_batches_joins_in_with_as_many_forwards(parts):
    network, data, settings = parts
    counts = []
    for rank in range(3):
        calls = []
        handle = network.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        world = World(rank, 3, rank, 3, torch.device("cpu"))
        object.__setattr__(world, "sum", lambda tensor: tensor)
        validate(network, data, settings("inference.batch=1", "eval.images=7"), world, ROUTES)
        handle.remove()
        counts.append(len(calls))
    assert counts == [math.ceil(7 / 3)] * 3
