"""Faults of training on masks: stopped, killed, a store that was cut off or damaged."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from more.train.stop import STOPPED
from tests.faults.test_training import assert_equal, state, status, step_folder
from tests.processes import Forked
from tests.train.conftest import command, records

SETTINGS = ("train.iterations=12", "segment.blocks=1", "segment.tags=0.3", "checkpoint.keep=12")


def words(tiny, run: Path, one: Path, *settings: str) -> list[object]:
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return ["train", tiny["config"], "--train", tiny["train"], "--masks", tiny["train"],
            "--init", one, "--run-dir", run, *options]


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    done = command("train", tiny["config"], "--train", tiny["train"], "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def straight(tiny, one, tmp_path_factory) -> Path:
    """Twelve updates without any trouble."""
    run = tmp_path_factory.mktemp("straight") / "run"
    done = command(*words(tiny, run, one))
    assert done.returncode == 0, done.stderr
    return run


def until(run: Path, step: int, process: Forked, seconds: float = 90) -> None:
    """Wait for a number of updates."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "log.jsonl").is_file() and len(records(run)) >= step:
            return
        time.sleep(0.03)
    raise AssertionError(f"never reached step {step}: {process.communicate(1)}")


def begin(tiny, run: Path, one: Path, *settings: str) -> Forked:
    return Forked("tests.faults.wounds", "slow:0.15", *words(tiny, run, one, *settings))


def assert_same_run(run: Path, straight: Path) -> None:
    assert_equal(state(run, 12), state(straight, 12))
    first, second = ((step_folder(path, 12) / "state.json").read_text()
                     for path in (run, straight))
    assert first == second


@pytest.mark.parametrize("views", ["tokens.views=2", pytest.param(
    "tokens.gb=0", marks=pytest.mark.slow)])
def test_stopped_on_request(tiny, one, straight, tmp_path, views):
    """Fault 3: a checkpoint, exit code 75, then equal to the straight run."""
    run = tmp_path / "run"
    process = begin(tiny, run, one, views)
    until(run, 4, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode == STOPPED, said
    stopped = status(run)
    assert stopped["state"] == "stopped" and 4 <= stopped["step"] < 12
    done = command(*words(tiny, run, one, views))
    assert done.returncode == 0, done.stderr
    if views == "tokens.gb=0":  # nothing is rounded to 16 bits: another training
        straight = tmp_path / "straight"
        assert command(*words(tiny, straight, one, views)).returncode == 0
    assert_same_run(run, straight)
    assert [line["terms"] for line in records(run)] == [
        line["terms"] for line in records(straight)]


def test_killed_at_any_moment(tiny, one, straight, tmp_path):
    """Fault 4: bit-equal at the end."""
    run, kills = tmp_path / "run", 0
    for step, pause in ((2, 0.0), (7, 0.1)):
        process = begin(tiny, run, one, "checkpoint.every=1")
        until(run, step, process)
        time.sleep(pause)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    done = command(*words(tiny, run, one, "checkpoint.every=1"))
    assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stdout + done.stderr
    assert_same_run(run, straight)


def only_store(run: Path) -> Path:
    folder, = (run / "tokens").iterdir()
    return folder


def test_a_store_that_was_cut_off_is_finished(tiny, one, straight, tmp_path):
    """As a kill while it is filled leaves it: some rows, no record."""
    run = tmp_path / "run"
    shutil.copytree(straight / "tokens", run / "tokens")
    (only_store(run) / "store.json").unlink()
    sums = only_store(run) / "sums.npy"
    data = bytearray(sums.read_bytes())
    data[-8 * 20:] = bytes(8 * 20)
    sums.write_bytes(data)
    done = command(*words(tiny, run, one))
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "20/20 views" in said, said
    assert json.loads((only_store(run) / "store.json").read_text())["rows"] == 48
    assert [line["terms"]["seg"] for line in records(run)] == pytest.approx(
        [line["terms"]["seg"] for line in records(straight)], rel=1e-3)


def test_a_damaged_store_stops_the_run_and_says_what_to_do(tiny, one, straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight / "tokens", run / "tokens")
    tokens = only_store(run) / "tokens.npy"
    data = bytearray(tokens.read_bytes())
    data[len(data) // 3] ^= 1  # a view of the first epoch
    tokens.write_bytes(data)
    done = command(*words(tiny, run, one))
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "is damaged" in said and "delete this folder" in said and str(only_store(run)) in said
    assert status(run)["state"] == "failed"
    shutil.rmtree(only_store(run))
    assert command(*words(tiny, run, one)).returncode == 0
    assert_same_run(run, straight)
