"""Faults of a training run: real processes, real signals, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from more.train.stop import STOPPED
from more.train.telemetry import Records
from tests.processes import Forked
from tests.train.conftest import REAL, command, records


def train(tiny, run, *settings, wound="", resume="auto", **how):
    """Train, perhaps with a wound of `tests.faults.wounds`; `how` as in `command`."""
    options = [part for setting in settings for part in ("--set", setting)]
    return command("train", tiny["config"], "--train", tiny["train"], "--run-dir", run,
                   "--resume", resume, *options, start=_start(wound), **how)


def _start(wound: str) -> tuple[str, ...]:
    return ("tests.faults.wounds", wound) if wound else ("more",)


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, moments and random states of a checkpoint."""
    return {f"{name}:{key}": value
            for name in ("model", "training", "ranks")
            for key, value in load_file(step_folder(run, step) / f"{name}.safetensors").items()}


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """Twelve updates without any trouble."""
    run = tmp_path_factory.mktemp("straight") / "run"
    done = train(tiny, run, "train.iterations=12", "checkpoint.keep=9", launcher=REAL)
    assert done.returncode == 0, done.stderr
    assert status(run) == {"state": "finished", "step": 12, "iterations": 12}
    return run


def test_killed_while_saving(tiny, straight, tmp_path):
    """Fault 1: the next start takes the checkpoint before, and says so."""
    run = tmp_path / "run"
    killed = train(tiny, run, "train.iterations=12", wound="killed_while_saving:6")
    assert killed.returncode == -signal.SIGKILL and not step_folder(run, 6).exists()
    again = train(tiny, run, "train.iterations=12")
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    assert "resumed after 3 updates" in said
    assert "step-000006: its writing was interrupted" in said
    assert_equal(state(run, 12), state(straight, 12))
    assert not list((run / "checkpoints").glob(".tmp*"))


def test_a_line_that_a_kill_has_cut_off_takes_no_other_with_it(tmp_path):
    """What is written after it is a line of its own; a whole log is not touched."""
    path = tmp_path / "log.jsonl"
    for before, after in (('{"step": 1}\n{"st', '{"step": 1}\n{"st\n'),
                          ('{"step": 1}\n', '{"step": 1}\n'), ("", "")):
        path.write_text(before)
        records = Records(tmp_path, True, 4)
        records.write(2, {"seconds": 1.0})
        records.close()
        line = path.read_text().removeprefix(after)
        assert json.loads(line)["step"] == 2, path.read_text()


def _wait_for_step(run: Path, step: int, process: Forked, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "log.jsonl").is_file() and len(records(run)) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"never reached step {step}: {process.poll()}")


def _begin(tiny, run: Path, wound: str, *settings: str) -> Forked:
    options = [part for setting in settings for part in ("--set", setting)]
    return Forked(*_start(wound), "train", tiny["config"], "--train", tiny["train"], "--run-dir",
                  run, *options)


@pytest.mark.parametrize("how", [
    "SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow), "file"])
def test_stopped_on_request(tiny, straight, tmp_path, how):
    """Fault 3: checkpoint at the next step, exit code 75, then equal to the straight run."""
    run = tmp_path / "run"
    process = _begin(tiny, run, "slow:0.2", "train.iterations=12")
    _wait_for_step(run, 4, process)
    if how == "file":
        (run / "stop").touch()
    else:
        process.send_signal(getattr(signal, how))
    said = process.communicate(timeout=60)
    assert process.returncode == STOPPED, said
    stopped = status(run)
    assert stopped["state"] == "stopped" and 4 <= stopped["step"] < 12
    assert step_folder(run, stopped["step"]).is_dir() and not (run / "stop").exists()
    assert train(tiny, run, "train.iterations=12").returncode == 0
    assert_equal(state(run, 12), state(straight, 12))
    assert [line["terms"] for line in records(run)] == [
        line["terms"] for line in records(straight)]


def test_killed_at_random_moments(tiny, straight, tmp_path):
    """Fault 4: weights, moments, schedule, random state and order are bit-equal at the end."""
    run, rng, kills = tmp_path / "run", np.random.default_rng(os.getpid()), 0
    for _ in range(3):
        process = _begin(tiny, run, "slow:0.4", "train.iterations=12",
                         "checkpoint.every=1", "checkpoint.keep=9")
        _wait_for_step(run, len(records(run)) + 1 if (run / "log.jsonl").is_file() else 1, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    done = train(tiny, run, "train.iterations=12", "checkpoint.every=3", "checkpoint.keep=9")
    assert done.returncode == 0, done.stderr
    assert_equal(state(run, 12), state(straight, 12))
    first, second = (json.loads((step_folder(path, 12) / "state.json").read_text())
                     for path in (run, straight))
    assert first == second


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("stage", "precision"), [
    pytest.param(0, "fp32", marks=SLOW), (1, "fp32"), pytest.param(3, "fp32", marks=SLOW),
    pytest.param(1, "bf16_weights", marks=SLOW), (2, "bf16_weights")])
def test_not_finite_on_one_rank(tiny, tmp_path, stage, precision):
    """Fault 7: no rank updates, all stop, the images are on disk; or so many are left out."""
    options = (f"deepspeed.zero_stage={stage}", "train.iterations=4", "checkpoint.every=1",
               "checkpoint.keep=9", f"precision={precision}")
    run = tmp_path / "run"
    done = train(tiny, run, *options, wound="not_finite:1,2", ranks=2)
    assert done.returncode != 0 and "the loss of rank 1 is not finite" in done.stderr
    named = json.loads((run / "nonfinite/step-000002.json").read_text())
    assert [len(rank["images"]) for rank in named["ranks"]] == [2, 2]
    assert [rank["finite_loss"] for rank in named["ranks"]] == [True, False]
    assert status(run)["state"] == "failed" and step_folder(run, 2).is_dir()
    assert not step_folder(run, 3).exists()
    skipping = train(tiny, tmp_path / "skip", *options, "train.skip_nonfinite=1",
                     wound="not_finite:1,2", ranks=2)
    assert skipping.returncode == 0, skipping.stderr
    before, after, end = (load_file(step_folder(tmp_path / "skip", step) / "model.safetensors")
                          for step in (2, 3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], end[name]) for name in end)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "why"), [
    (lambda step: _cut(step / "training.safetensors"), "training.safetensors has"),
    (lambda step: _flip(step / "model.safetensors"), "model.safetensors is damaged"),
    (lambda step: (step / "state.json").unlink(), "state.json is missing"),
    (lambda step: (step / "COMPLETE").write_text(""), "COMPLETE cannot be read"),
    (lambda step: (step / "COMPLETE").unlink(), "incomplete")])
def test_a_damaged_checkpoint_is_passed_over(tiny, straight, tmp_path, damage, why):
    """Fault 9: the one before is used, and the reason said; never a silent fresh start."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    damage(step_folder(run, 12))
    done = train(tiny, run, "train.iterations=12")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "resumed after 9 updates" in said
    assert f"not resumed: step-000012: {why}" in said
    assert_equal(state(run, 12), state(straight, 12))


def test_none_that_is_sound_is_refused(tiny, straight, tmp_path):
    """Fault 9."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for marker in run.glob("checkpoints/*/COMPLETE"):
        marker.unlink()
    done = train(tiny, run, "train.iterations=12")
    assert done.returncode == 2 and "no complete checkpoint" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB: one checkpoint of the tiny network fits, not two."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)],
                          capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


@pytest.mark.parametrize("background", [pytest.param(False, marks=SLOW), True])
def test_a_full_disk(tiny, small_disk, background):
    """Fault 10: stops with path and bytes; the old checkpoint stays, nothing half-written."""
    run = small_disk / "run"
    first = train(tiny, run, "train.iterations=3", "model.decoder_width=60")
    assert first.returncode == 0, first.stderr
    size = sum(path.stat().st_size for path in step_folder(run, 3).iterdir())
    assert size > 2**20, "the network must be large enough for the test"
    done = train(tiny, run, "train.iterations=6", "model.decoder_width=60",
                 f"checkpoint.background={background}")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "step-000006: needs" in done.stderr and "bytes" in done.stderr
    assert not list((run / "checkpoints").glob(".tmp*"))
    assert step_folder(run, 3).is_dir() and not step_folder(run, 6).exists()


def test_other_settings_go_on_or_are_refused(tiny, straight, tmp_path):
    """Fault 11."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    refused = train(tiny, run, "train.iterations=14", "data.crop=72")
    assert refused.returncode == 2 and "data.crop: 64 → 72" in refused.stderr
    allowed = train(tiny, run, "train.iterations=14", "optim.lr=1e-5", "train.log_every=2")
    assert allowed.returncode == 0, allowed.stderr
    assert max(records(run)[-1]["lr"].values()) <= 1e-4  # heads: ten times the new rate


def test_nothing_foreign_is_unpickled(tiny, straight, tmp_path):
    """Fault 12: a pickle beside the checkpoint's files is never read; as weights it is refused."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for path in step_folder(run, 12).iterdir():
        assert path.suffix in (".safetensors", ".json") or path.name == "COMPLETE"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    torch.save(Evil(), step_folder(run, 12) / "mp_rank_00_model_states.pt")
    assert train(tiny, run, "train.iterations=13").returncode == 0
    refused = train(tiny, tmp_path / "other",
                    f"model.weights={step_folder(run, 12) / 'mp_rank_00_model_states.pt'}")
    assert refused.returncode == 2 and not (tmp_path / "harm").exists()


def test_out_of_memory_says_what_to_do(tiny, tmp_path):
    """Fault 13."""
    done = train(tiny, tmp_path / "run", wound="out_of_memory")
    assert done.returncode == 2 and "the device is out of memory" in done.stderr
    assert "set train.micro_batch=2 (4 now)" in done.stderr and "Traceback" not in done.stderr


def test_a_hanging_rank_ends_the_run_with_stacks(tiny, tmp_path):
    """Fault 14: within the limit, with a stack of every rank."""
    run, started = tmp_path / "run", time.monotonic()
    done = train(tiny, run, "deepspeed.timeout_minutes=0.25", wound="sleeping:1,2",
                 ranks=2)
    assert done.returncode != 0 and time.monotonic() - started < 100
    stacks = {path.name: path.read_text() for path in (run / "stacks").iterdir()}
    assert "in network_input" in stacks["rank-1.txt"] and "wounds.py" in stacks["rank-1.txt"]
    assert "Timeout" in stacks["rank-0.txt"] and "all_reduce" in stacks["rank-0.txt"]
