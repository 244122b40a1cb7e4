"""CAMs of an update: which views are run, which terms need them, and from which weights."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from more.config.load import load_config
from more.errors import UserError
from more.method.cam import minmax, multi_scale, resize
from more.method.make_network import make_network
from more.method.objective import make_objective
from more.method.packing import packs
from more.train.average import WeightAverage
from more.train.cams import CamMaker, half_views, needs_main, view_sizes
from tests.train.conftest import command, records
from tests.train.test_mask_stage import Engine


@pytest.fixture
def setting(tiny):
    """(config, network, calls, forward): the forward notes mode, side and precision."""
    config = load_config(tiny["config"], ["loss.start.seg=5", "loss.start.energy=7",
                                          "cam.late_after=9", "cam.scales=(1.0,0.5)"])
    network, calls = make_network(config), []

    def forward(images, mode="train", half=False):
        calls.append((mode, images.shape[-1], half))
        return network(images, mode=mode, half=half)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    tags = torch.zeros(2, 7)
    tags[0, 1] = tags[1, 4] = 1
    return config, network, calls, forward, images, tags


def maker(setting, average=None, **cam):
    config = replace(setting[0], cam=replace(setting[0].cam, **cam))
    make = CamMaker(config, setting[3], make_objective(config), 8, average)
    return lambda *inputs: [present.dense(7) for present in make(*inputs)]


def plain(setting):
    """Multi-scale CAMs of all views with the network as it is."""
    _, network, _, _, images, tags = setting
    found = multi_scale(lambda x: network(x, mode="cam"), images, (1, 0.5), (True, True), tags=tags)
    return [present.dense(7) for present in found]


def test_the_main_cam_is_run_only_for_terms_that_need_it(setting):
    objective = make_objective(setting[0])
    assert [needs_main(objective, step) for step in (0, 5, 6, 8, 10)] == [
        False, False, True, True, True]
    early = replace(setting[0], cam=replace(setting[0].cam, late_after=2))
    assert [needs_main(make_objective(early), step) for step in (2, 3)] == [False, True]
    output, cams = setting[1](setting[4]), maker(setting)
    early = cams(setting[4], setting[5], output, 5)
    assert {mode for mode, *_ in setting[2]} == {"aux_cam"}
    setting[2].clear()
    later = cams(setting[4], setting[5], output, 6)
    assert setting[2] == [("cam", 64, False), ("cam", 32, False)]
    for found, expected in zip(later, plain(setting), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(early[1], later[1])  # the auxiliary one is the same
    single = resize(output.cam, (64, 64)).relu() * setting[5][:, :, None, None]
    torch.testing.assert_close(early[0], minmax(single))


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize("options", [
    (), ("cam.ema=True", "train.ema=0.9"), ("model.token_attention=shared",),
    ("model.frozen_blocks=1", "tokens.gb=0"), ("model.vit.init_values=0.5",),
    ("model.aux_layer=-1",), ("cam.precision=bf16",)])
def test_views_in_one_pass_give_the_same_cams(setting, tiny, options, step):
    config = load_config(tiny["config"], [
        "loss.start.seg=5", "loss.start.energy=7", "cam.scales=(1.0,0.5,1.3)", *options])
    network, (images, tags), runs = make_network(config), setting[4:], []
    output = network(images)
    for packed in ("no", "yes"):
        def forward(images, packed=packed, **options):
            runs.append(packed)
            return network(images, **options)
        one = replace(config, cam=replace(config.cam, packed=packed))
        engine = Engine(network)
        engine.optimizer = None
        average = WeightAverage(engine, 0.9) if config.cam.ema else None
        runs.append(CamMaker(one, forward, make_objective(one), 8, average)(
            images, tags, output, step))
    assert runs.count("no") == 3 and runs.count("yes") == 1
    separate, together = (run for run in runs if not isinstance(run, str))
    loose = {"rtol": 0, "atol": 0.05} if config.cam.precision == "bf16" else {}
    for found, expected in zip(together, separate, strict=True):
        torch.testing.assert_close(found.maps, expected.maps, **loose)


def test_tokens_of_frozen_blocks_run_with_images_of_other_sizes(setting, tiny):
    """One view enters above the frozen blocks, the others at the bottom."""
    config = load_config(tiny["config"], ["model.frozen_blocks=2", "cam.scales=(1.0,0.5)",
                                          "model.aux_layer=-1"])
    network, (images, tags) = make_network(config), setting[4:]
    output, mirrored = network(images), network.encoder.lower(images.flip(-1), 2)
    found = []
    for packed in ("no", "yes"):
        one = replace(config, cam=replace(config.cam, packed=packed))
        found.append(CamMaker(one, network, make_objective(one), 8)(
            images, tags, output, 9, mirrored))
    for together, separate in zip(*reversed(found), strict=True):
        torch.testing.assert_close(together.maps, separate.maps)


def test_only_plain_blocks_are_packed(tiny):
    network = make_network(load_config(tiny["config"], ["model.vit.drop_path_rate=0.2"]))
    assert [packs(block) for block in network.encoder.blocks] == [True, False, False, False]
    views = [torch.randn(2, 3, side, side) for side in (64, 32)]
    network.eval()
    for one, view in zip(network(views, mode="cam"), views, strict=True):
        torch.testing.assert_close(one, network(view, mode="cam"))


def test_every_kth_update_runs_views(setting):
    output, cams = setting[1](setting[4]), maker(setting, every=3)
    counts = []
    for step in range(6, 13):
        setting[2].clear()
        main, aux = cams(setting[4], setting[5], output, step)
        counts.append(len(setting[2]))
        assert main.shape == aux.shape == (2, 7, 64, 64)
        assert not main.requires_grad and 0.99 < main.amax() <= 1
    assert counts == [2, 0, 0, 2, 0, 0, 2]


def test_averaged_weights_give_all_views(setting):
    class Average:
        """Weights moved a little while it is in place."""

        @contextlib.contextmanager
        def in_place(self):
            weight = setting[1].classifier.weight
            weight.data.neg_()
            yield
            weight.data.neg_()

    output = setting[1](setting[4])
    found = maker(setting, Average(), ema=True)(setting[4], setting[5], output, 6)
    assert setting[2] == [("cam", 64, False), ("cam", 32, False)]
    other = plain(setting)
    assert not torch.equal(found[0], other[0])
    torch.testing.assert_close(found[1], other[1])  # that classifier was not moved
    with Average().in_place():
        torch.testing.assert_close(found[0], plain(setting)[0])
    with pytest.raises(ValueError, match="average"):
        maker(setting, ema=True)


def test_precision_of_the_views(setting, monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there is one, but not in use
    assert not half_views("auto", cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert half_views("auto", gpu)
    assert half_views("bf16", cpu) and not half_views("model", gpu)
    monkeypatch.undo()
    output = setting[1](setting[4])
    exact = maker(setting)(setting[4], setting[5], output, 6)
    rough = maker(setting, precision="bf16")(setting[4], setting[5], output, 6)
    assert setting[2][-1] == ("cam", 32, True) and rough[0].dtype == torch.float32
    assert 0 < (rough[0] - exact[0]).abs().max() < 0.1


class WeightCasts(TorchDispatchMode):
    """Counts how often each of some tensors is cast."""

    def __init__(self, weights):
        super().__init__()
        self.seen = dict.fromkeys((weight.data_ptr() for weight in weights), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.seen:
            self.seen[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_all_views(setting):
    output, cams = setting[1](setting[4]), maker(setting, precision="bf16")
    with WeightCasts(setting[1].encoder.blocks.parameters()) as casts:
        cams(setting[4], setting[5], output, 6)
    assert len(setting[2]) == 2 and set(casts.seen.values()) == {0, 1}
    setting[1](setting[4]).logits.sum().backward()  # and no cast without gradient is left behind
    assert all(weight.grad is not None for weight in setting[1].encoder.blocks.parameters())


def test_views_on_whole_patches(setting):
    config = replace(setting[0], data=replace(setting[0].data, crop=56),
                     cam=replace(setting[0].cam, scales=(1.0, 0.5, 0.75)))
    assert view_sizes(config, 8) == [((56, 56), 1), ((28, 28), 2), ((42, 42), 2)]
    whole = replace(config, cam=replace(config.cam, whole_patches=True, ema=True))
    assert view_sizes(whole, 8) == [((56, 56), 2), ((32, 32), 2), ((40, 40), 2)]


def test_settings_that_cannot_be(tiny):
    with pytest.raises(UserError, match=r"cam\.ema"):
        load_config(tiny["config"], ["cam.ema=True"])
    assert load_config(tiny["config"], ["cam.ema=True", "train.ema=0.9"]).cam.ema
    with pytest.raises(UserError, match=r"cam\.every"):
        load_config(tiny["config"], ["cam.every=0"])


@pytest.mark.slow
def test_training_takes_all_of_them_at_once(tiny, tmp_path):
    """Under DeepSpeed: averaged weights, bf16 views, compiled blocks, views in every second one."""
    terms = []
    for name, overrides in (("plain", []), ("with", [
            "cam.ema=True", "train.ema=0.5", "cam.precision=bf16", "cam.every=2",
            "train.compile=eager"])):
        done = command("train", tiny["config"], "--train", tiny["train"], "--run", tmp_path / name,
                       *(part for override in ["train.iterations=3", *overrides]
                         for part in ("--set", override)))
        assert done.returncode == 0, done.stderr
        terms.append([record["terms"] for record in records(tmp_path / name)])
    assert len(terms[0]) == len(terms[1]) == 3
    # The first update begins with equal weights, and the terms without CAMs do not know of them.
    for term in ("cls", "cls_aux", "mcl"):
        assert terms[1][0][term] == pytest.approx(terms[0][0][term], rel=1e-5)
    assert terms[1][2]["ptc"] != terms[0][2]["ptc"]
