"""Predicted times on many GPUs: limits that must hold, and bytes against DeepSpeed's rules."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from more.bench.bench_scale import Machine, Work, count_work, predict, run, scale_table
from more.bench.bench_train import bench_settings
from more.errors import UserError
from more.plan.memory import parameter_sizes
from more.train.deepspeed_settings import split_batch
from tests.bench.test_step_parts import SMALL
from tests.train.conftest import command

COUNTED: dict[str, Work] = {}
FAST = Machine(bandwidth=1e15, latency=0.0, flops=1e9, losses=0.0, image=0.0)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return bench_settings(file, ["data.workers=2"])


def at(config, stage=1, **options):
    return replace(config, deepspeed=replace(config.deepspeed, zero_stage=stage), **options)


def counted(config) -> Work:
    """Counted once for equal settings: every count builds and follows a network."""
    if repr(config) not in COUNTED:
        COUNTED[repr(config)] = count_work(config, 2)
    return COUNTED[repr(config)]


def found(config, ranks, machine, passes=1):
    split = split_batch(2 * ranks * passes, ranks, 2)
    return predict(config, counted(config), split, ranks, machine)


def test_a_free_network_scales_without_loss(config):
    one, many = (found(config, ranks, FAST) for ranks in (1, 64))
    assert many["step"] == pytest.approx(one["step"], rel=1e-6)
    assert many["images/s"] == pytest.approx(64 * one["images/s"], rel=1e-6)
    assert one["sending"] == 0 and one["MB sent"] == 0
    assert one["step"] == one["compute"] + one["CAM"] and one["most"] == "CAM"


def test_the_slowest_part_is_named(config):
    assert found(config, 8, replace(FAST, bandwidth=1e6))["most"] == "sending"
    slow = found(config, 8, replace(FAST, image=100.0))
    assert slow["most"] == "data"
    assert slow["step"] == pytest.approx(2 * 100 / 2)  # two images by two processes
    assert found(config, 8, replace(FAST, losses=50.0))["most"] == "compute"
    waiting = found(config, 8, replace(FAST, latency=1.0))
    assert waiting["sending"] == pytest.approx(2 * 7 * 2, rel=1e-6)  # counts of all terms; means


@pytest.mark.parametrize(("stage", "passes", "gradients", "weights"), [
    (0, 1, 2, 0), (0, 3, 2, 0), (1, 1, 2, 1), (1, 3, 2, 1), (2, 1, 2, 1), (2, 3, 6, 1)])
def test_bytes_by_stage(config, stage, passes, gradients, weights):
    size = 4 * sum(parameter_sizes(config)[0]) / 1e6
    sent = found(at(config, stage), 4, FAST, passes)["MB sent"]
    assert sent == pytest.approx(0.75 * (gradients + weights) * size, rel=1e-3)


def test_stage_3_gathers_for_every_view(config):
    few = replace(config, cam=replace(config.cam, scales=(1.0,)))
    sizes = [found(at(one, 3), 4, FAST)["MB sent"] for one in (few, config)]
    work = counted(config)
    assert work.views == 3 and work.view < work.weights
    assert sizes[1] - sizes[0] == pytest.approx(0.75 * 2 * work.view / 1e6)
    rare = replace(config, cam=replace(config.cam, every=10 ** 6))
    assert found(at(rare, 3), 4, FAST)["MB sent"] == pytest.approx(
        0.75 * 3 * work.weights / 1e6, rel=1e-3)


def test_bf16_sends_gradients_in_fp32(config):
    full, half = (counted(replace(config, precision=p)) for p in ("fp32", "bf16"))
    assert half.weights == full.weights == full.sent == half.sent


def test_bf16_weights_are_gathered_in_16_bits_and_their_gradients_sent_in_32(config):
    full, half = (counted(replace(config, precision=p)) for p in ("fp32", "bf16_weights"))
    assert 2 * half.weights == full.weights and half.sent == full.sent
    slow = replace(FAST, flops=1.0, bandwidth=1e3)  # all could hide under such a backward
    sending = [found(at(replace(config, precision="bf16_weights"), stage), 4, slow)["sending"]
               for stage in (1, 2)]
    bucket, small = config.deepspeed.bucket_mb * 2**20, 0.75 * half.weights / 1e3
    whole, last = (sent - small for sent in sending)
    assert whole == pytest.approx(2 * 0.75 * half.sent / 1e3)
    assert last == pytest.approx(0.75 * min(bucket, half.sent) / 1e3)


def test_passes_cost_a_forward_of_all_but_one(config):
    one, three = (found(config, 1, FAST, passes)["compute"] for passes in (1, 3))
    work = counted(config)
    forward = (work.train - work.backward) / FAST.flops
    assert three == pytest.approx(3 * one + 2 * forward)


def test_sending_hides_under_backward_but_for_the_last_bucket(config):
    work = counted(config)
    slow = replace(FAST, flops=1.0, bandwidth=1e3)
    last = 0.75 * min(config.deepspeed.bucket_mb * 2**20, work.sent) / 1e3
    gathered = 0.75 * work.weights / 1e3
    assert found(config, 4, slow)["sending"] == pytest.approx(last + gathered)
    # Without anything to hide under, all of it shows.
    bare = found(config, 4, replace(slow, flops=1e18))["sending"]
    assert bare == pytest.approx(3 * 0.75 * work.weights / 1e3, rel=1e-6)


def test_views_of_every_kth_update_cost_a_share(config):
    rare = replace(config, cam=replace(config.cam, every=4))
    assert found(rare, 1, FAST)["CAM"] == pytest.approx(found(config, 1, FAST)["CAM"] / 4)
    model = replace(config.model, gradient_checkpointing=True)
    again = counted(replace(config, model=model))
    assert again.train / counted(config).train == pytest.approx(4 / 3, rel=0.02)


def test_the_table_and_the_command(config, tmp_path):
    lines = scale_table(config, (1, 8), 0, replace(FAST, bandwidth=1e6))
    assert [line["batch"] for line in lines] == [2, 16]
    assert lines[0]["efficiency"] == 1 > lines[1]["efficiency"] > 0
    done = command("bench", "scale", "--config", tmp_path / "small.py", "--gpus", "1,4",
                   "--bandwidth", 5, "--set", "deepspeed.zero_stage=3", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ZeRO"] == 3 and facts["bandwidth"] == 5e9 and len(facts["an update, ms"]) == 2
    for wrong in ("one", "1,0"):
        with pytest.raises(UserError, match="--gpus"):
            run(tmp_path / "small.py", [], wrong, 0, FAST, True)
