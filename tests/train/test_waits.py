"""What an update asks a GPU for: no value in between, means one update late (see `claimed_gpu`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from more.data.shards.reader import ShardSet
from more.method.losses import contrast
from more.method.losses.contrast import patch_contrast_loss
from more.method.make_network import make_network
from more.tensors import Download, upload
from more.train.deepspeed_settings import deepspeed_dict, split_batch
from more.train.distributed import World, import_deepspeed
from more.train.meter import Means, Meter
from more.train.stage_one import TagStage
from more.train.stage_two import MaskStage
from more.train.stop import LOOK_EVERY, StopRequest
from tests.claimed_gpu import GPU, OnGpu, claimed_gpu, put_on
from tests.data.sets import mask_set, small_set
from tests.processes import run_ranks
from tests.research.launches import Launches
from tests.train.conftest import command, records
from tests.train.test_device import LATE, sections_of, settings, updated, world

NO_ENERGY = {"weights": {"energy": 0.0}}  # its lattice is a matter of `more.filtering`
SEG = {**NO_ENERGY, "start": {"seg": 0, "energy": 0}}
OPTIONS = {
    "as released": {"loss": NO_ENERGY},
    "decoder": {"loss": SEG},
    "decoder, late": {"loss": SEG, "cam": LATE},
    "paper, decoder, late": {"variant": "paper", "loss": SEG, "cam": LATE},
    "CAMs of the training forward alone": {"loss": SEG, "cam": {"every": 3}},
    "average": {"loss": NO_ENERGY, "cam": {"ema": True}, "train": {"ema": 0.9}},
    "tokens of frozen blocks": {"model": {"frozen_blocks": 1}, "loss": SEG},
    "competitive": {"model": {"pooling": "competitive"}, "loss": SEG},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


def waits_of_an_update(stage, config) -> dict[str, int]:
    with claimed_gpu():
        network = put_on(make_network(config))
        stage.prepare(network, print)
        updated(stage, network, config)  # makes what is kept between updates
        with Launches() as count:
            terms, _ = updated(stage, network, config)
    assert not count.blocking  # a batch's parts are sent without waiting
    # `updated` itself copies the terms to the CPU, to be looked at.
    return {**count.waits, "copy to the CPU": count.waits["copy to the CPU"] - len(terms)}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_update_on_tags_waits_for_no_value(images, tmp_path, name):
    config = settings(1, **sections_of(OPTIONS[name]))
    stage = TagStage(config, ShardSet(images), tmp_path, world(GPU))
    assert waits_of_an_update(stage, config) == {"copy to the CPU": 0}


def test_an_update_on_masks_waits_for_no_value(images, tmp_path):
    config, masks = settings(2, segment={"blocks": 2, "tags": 0.3}), tmp_path / "masks"
    stage = MaskStage(config, ShardSet(images), ShardSet(mask_set(masks, images)), tmp_path,
                      world(GPU))
    assert waits_of_an_update(stage, config) == {"copy to the CPU": 0}


def test_zero_0_waits_for_one_value_whether_the_gradient_is_finite(images, tmp_path):
    config = settings(1, **sections_of({"loss": SEG, "deepspeed": {"zero_stage": 0}}))
    stage = TagStage(config, ShardSet(images), tmp_path, world(GPU))
    assert waits_of_an_update(stage, config) == {"copy to the CPU": 0,
                                                 "aten::_local_scalar_dense": 1}


def test_large_grids_wait_for_no_number_of_patches_and_give_the_same(monkeypatch):
    """Image by image: on a CPU without the uncertain patches, on a GPU with these at weight 0."""
    monkeypatch.setattr(contrast, "FEW", {"cpu": 0, "cuda": 0})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 8, 5, 5, generator=generator)
    labels = torch.randint(0, 4, (3, 5, 5), generator=generator)
    labels[labels == 3], labels[2] = 255, 255
    found = {}
    for device in ("cpu", "cuda"):
        with claimed_gpu(), Launches() as count:
            leaf = (OnGpu(tokens) if device == "cuda" else tokens.clone()).requires_grad_()
            loss = patch_contrast_loss(leaf, OnGpu(labels) if device == "cuda" else labels)
            loss.backward()
        assert not count.waits
        with claimed_gpu():
            found[device] = loss.detach().cpu(), leaf.grad.cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"])
    assert found["cpu"][1].abs().sum() > 0 and not found["cpu"][1][2].any()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_does_not_wait_to_measure_time(stage):
    config = settings(1, deepspeed={"zero_stage": stage})
    chosen = deepspeed_dict(config, split_batch(4, 1))
    import_deepspeed()
    from deepspeed.utils.config import get_timers_config

    assert get_timers_config({}).enabled and not get_timers_config(chosen).enabled


def test_values_come_and_go_by_way_of_pinned_memory(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(
        record=lambda: told.append("copied"), synchronize=lambda: told.append("waited")))
    with claimed_gpu(), Launches() as count:
        values = upload(torch.tensor([1.5, 2.0]), GPU)
        coming = Download(values)
        values += 1  # on the stream it comes after the copy
        assert isinstance(values, OnGpu) and told == ["copied"]
    assert coming.read() == [1.5, 2.0] and told == ["copied", "waited"] and not count.waits
    here = torch.tensor([3.0])
    kept = Download(here)
    here += 1
    assert kept.read() == [3.0] and upload(here, torch.device("cpu")) is here


@pytest.mark.parametrize("late", [False, True])
def test_means_of_updates_reach_the_meter_each_once(late):
    meter = Meter()
    means = Means(meter, late)
    for update in range(5):
        means.put(["total"], torch.tensor([10.0 * update, float(update == 2)]), 4, 0.5)
        assert meter.steps == (update if late else update + 1)
        assert means.stopping == (update >= (3 if late else 2))
    means.flush()
    means.flush()
    assert (meter.steps, meter.sums, meter.images, meter.waiting) == (5, {"total": 100.0}, 20, 2.5)


def trained(tiny, run: Path, *options: str, start: tuple[str, ...] = ("more",)) -> list[dict]:
    done = command("train", tiny["config"], "--train", tiny["train"], "--run", run,
                   *(part for option in options for part in ("--set", option)), start=start)
    assert done.returncode == 0, done.stderr
    return [line["terms"] for line in records(run)]


def test_read_late_the_log_has_the_means_of_exactly_its_updates(tiny, tmp_path):
    late = ("tests.faults.wounds", "read_late:-1,0")
    single = trained(tiny, tmp_path / "at-once")
    assert len(single) == 6
    assert trained(tiny, tmp_path / "late", start=late) == single
    expected = [{name: sum(terms[name] for terms in single[first:first + 3]) / 3
                 for name in single[0]} for first in (0, 3)]
    # Neither a checkpoint nor an evaluation in between takes an update with it.
    thirds = trained(tiny, tmp_path / "thirds", "train.log_every=3", "checkpoint.every=2",
                     start=late)
    assert thirds == expected


def test_read_late_two_ranks_stop_after_the_same_update(tiny, tmp_path):
    """Rank 1 is asked in the third update; both hear of it in the fourth."""
    run = tmp_path / "run"
    done = run_ranks(2, "tests.faults.wounds", "read_late:1,2", "train", tiny["config"], "--train",
                     tiny["train"], "--run", run, "--set", "train.log_every=20", "--set",
                     "checkpoint.every=20")
    assert done.returncode and (run / "status.json").is_file(), done.stdout + done.stderr
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-000004"]
    assert "stopped on request after 4 updates" in (run / "train.log").read_text()


def test_the_stop_file_is_looked_for_once_a_second(tmp_path, monkeypatch):
    looks, now, exists = [], [100.0], Path.exists
    monkeypatch.setattr("more.train.stop.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Path, "exists", lambda path: looks.append(path) or exists(path))
    stop = StopRequest()
    stop.join(tmp_path, World(0, 1, 0, 1, torch.device("cpu")))
    assert not any(stop.asked() for _ in range(50)) and len(looks) == 1
    (tmp_path / "stop").touch()
    assert not stop.asked()
    now[0] += LOOK_EVERY
    assert stop.asked() and stop.agreed() and stop.seen() and len(looks) == 2
    other = StopRequest()
    other.join(tmp_path, World(1, 2, 1, 2, torch.device("cpu")))
    assert not other.asked() and len(looks) == 2, "rank 0 alone looks while ranks meet"
