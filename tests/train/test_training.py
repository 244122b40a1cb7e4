"""Whole runs in processes of their own: records, resume, several ranks, bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import REAL, command, records

LAUNCH = Path(sys.executable).parent


def train(tiny, run: Path, *extra: str, launcher: tuple[str, ...] = (), run_name="--run"):
    return command("train", tiny["config"], "--train", tiny["train"],
                   "--val", tiny["val"], run_name, run, *extra, launcher=launcher)


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Path:
    """The tiny run from start to end in one process."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    done = train(tiny, run, launcher=REAL)
    assert done.returncode == 0, done.stderr
    return run


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def test_a_run_leaves_records_settings_and_complete_checkpoints(straight):
    lines = records(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert all(np.isfinite(value) for value in line["terms"].values())
        assert {"images_per_s", "data_wait", "lr"} <= set(line)
    assert lines[1]["terms"]["seg"] == 0 and lines[2]["terms"]["seg"] > 0
    about = json.loads((straight / "run.json").read_text())
    assert len(about["classes"]) == 7
    scores = [json.loads(x) for x in (straight / "log.jsonl").read_text().splitlines()][-1]
    assert set(scores["eval"]) == {"cam", "lam", "decoder"}
    assert sorted(p.name for p in (straight / "checkpoints").glob("step-*")) == [
        "step-000003", "step-000006"]


def test_an_interrupted_run_ends_with_the_same_weights(tiny, straight, tmp_path):
    run = tmp_path / "resumed"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "checkpoints" / "step-000006")
    done = train(tiny, run)
    assert done.returncode == 0, done.stderr
    assert "resumed after 3 updates" in done.stdout + done.stderr
    first, second = weights(straight, 6), weights(run, 6)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert [r["terms"] for r in records(run)[-3:]] == [r["terms"] for r in records(straight)[-3:]]


def test_a_fresh_start_sets_the_earlier_run_aside(tiny, straight, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(straight, run)
    done = train(tiny, run, "--resume", "never", "--set", "train.iterations=4")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == [
        "step-000003", "step-000004"]
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4]
    assert json.loads((run / "config.json").read_text())["train"]["iterations"] == 4
    assert weights(run / "earlier-1", 6).keys() == weights(straight, 6).keys()


def test_a_finished_run_has_nothing_to_do(tiny, straight):
    before = records(straight)
    done = train(tiny, straight)
    assert done.returncode == 0, done.stderr
    assert records(straight) == before


def test_two_ranks_give_the_losses_of_one(tiny, straight, tmp_path):
    run = tmp_path / "two"
    launcher = (str(LAUNCH / "torchrun"), "--standalone", "--nproc_per_node=2", "-m", "more")
    done = train(tiny, run, launcher=launcher, run_name="--run-dir")
    assert done.returncode == 0, done.stderr
    for one, two in zip(records(straight), records(run), strict=True):
        for name, value in one["terms"].items():
            assert two["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("stage", [0, 1])
def test_both_launchers_agree_with_one_process_over_twenty_steps(tiny, tmp_path, launcher, stage):
    steps = ("--set", "train.iterations=20", "--set", f"deepspeed.zero_stage={stage}")
    commands = {
        "torchrun": (str(LAUNCH / "torchrun"), "--standalone", "--nproc_per_node=2", "-m", "more"),
        "deepspeed": (str(LAUNCH / "deepspeed"), "--num_gpus", "2", "--master_port", "29611",
                      "--module", "more")}
    for run, start in (("one", ()), ("two", commands[launcher])):
        done = train(tiny, tmp_path / run, *steps, launcher=start, run_name="--run-dir")
        assert done.returncode == 0, done.stderr
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        for name, value in a["terms"].items():
            assert b["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), (a["step"], name)


@pytest.mark.slow
def test_bf16_trains(tiny, tmp_path):
    done = train(tiny, tmp_path / "bf16", "--set", "precision=bf16")
    assert done.returncode == 0, done.stderr
    assert all(np.isfinite(line["terms"]["total"]) for line in records(tmp_path / "bf16"))


@pytest.mark.parametrize(("extra", "message"), [
    (("--set", "model.num_classes=9"), "has 7 classes, the configuration 9"),
    (("--set", "train.iteration=9"), "did you mean train.iterations"),
    (("--set", "model.backbone=vit_bose_patch16_224"), "unknown backbone"),
    (("--set", "model.weights=missing.pth"), "missing.pth"),
    (("--set", "data.crop=40"), "5×5"),
    (("--set", "train.global_batch=48"), "24 images, fewer than"),
])
def test_bad_settings_end_with_a_cure_and_without_a_traceback(tiny, tmp_path, extra, message):
    done = train(tiny, tmp_path / "run", *extra)
    assert done.returncode == 2
    assert message in done.stderr and "fix:" in done.stderr and "Traceback" not in done.stderr


def test_another_model_does_not_resume(tiny, straight):
    done = train(tiny, straight, "--set", "model.decoder_width=8", "--set", "train.iterations=8")
    assert done.returncode == 2
    assert "model.decoder_width: 16 → 8" in done.stderr


def test_a_damaged_shard_is_named_before_training(tiny, tmp_path):
    broken = tmp_path / "train"
    shutil.copytree(tiny["train"], broken)
    shard = next(broken.glob("shard-*.h5"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = command("train", tiny["config"], "--train", broken, "--run", tmp_path / "run")
    assert done.returncode == 2 and shard.name in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_elsewhere_continues_in_a_run_folder_of_its_own(tiny, straight, tmp_path):
    run = tmp_path / "branch"
    source = straight / "checkpoints" / "step-000003"
    done = train(tiny, run, "--resume", source, "--set", "train.iterations=4")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "config.json").read_text())["train"]["iterations"] == 4
    assert (run / "run.json").is_file()
