"""A signal to a run, or to all its processes: saved, status, a sentence, exit code 75."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from more.train.stop import STOPPED
from tests.conftest import ROOT
from tests.faults.test_training import _wait_for_step, assert_equal, state, status, step_folder
from tests.launch.project import _heed_signals, wait_for
from tests.processes import FIXED, Forked, free_port
from tests.train.conftest import command, records

SIGNALS = [signal.SIGINT, signal.SIGTERM]
MORE = ("train.iterations=12", "checkpoint.keep=12")


def words(tiny, run: Path, *settings: str) -> list[object]:
    options = [part for setting in (*MORE, *settings) for part in ("--set", setting)]
    return ["train", tiny["config"], "--train", tiny["train"], "--val", tiny["val"], "--run-dir",
            run, *options]


def begin(tiny, run: Path, wound: str, *settings: str, **extra: str) -> Forked:
    """A run that is the first of a process group."""
    return Forked("tests.faults.wounds", wound, *words(tiny, run, *settings), session=True,
                  **extra)


def stopped(process: Forked, run: Path) -> int:
    """The step that a stopped run says it stopped at, after all was checked."""
    out, err = process.communicate(60)
    assert process.returncode == STOPPED, err
    assert "Traceback" not in err and "stopped on request" in out + err
    found = status(run)
    assert found["state"] == "stopped" and not (run / "stop").exists()
    assert not found["step"] or step_folder(run, found["step"]).is_dir()
    return found["step"]


def goes_on(tiny, run: Path, *settings: str) -> None:
    done = command(*words(tiny, run, *settings))
    assert done.returncode == 0, done.stderr
    assert status(run) == {"state": "finished", "step": 12, "iterations": 12}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    goes_on(tiny, run)
    return run


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_the_group_leaves_the_loader_workers_alone(tiny, straight, tmp_path, number):
    """They would end before their trainer, which could not write its checkpoint then."""
    run = tmp_path / "run"
    process = begin(tiny, run, "slow:0.2", "data.workers=2")
    _wait_for_step(run, 4, process)
    os.killpg(process.pid, number)
    assert 4 <= stopped(process, run) < 12
    goes_on(tiny, run)
    assert_equal(state(run, 12), state(straight, 12))


def test_a_second_ctrl_c_ends_at_once(tiny, tmp_path):
    run = tmp_path / "run"
    process = begin(tiny, run, "slow:8")
    wait_for((run / "status.json").exists, "the first update", 30)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(30)
    assert process.returncode not in (0, STOPPED) and time.monotonic() - began < 6
    assert status(run)["state"] == "failed"


PHASES = {"start": (), "warm-up": ("head_warmup.updates=60", "head_warmup.batch=4"),
          "tokens": ("model.frozen_blocks=1", "data.augment=coco", "inference.batch=2"),
          "evaluation": ("eval.every=4", "inference.batch=1"), "saving": ()}


# At the start the file counts only once the ranks meet.
CASES = [*((phase, number) for phase in PHASES for number in SIGNALS), ("warm-up", "file"),
         ("tokens", "file"),
         *(pytest.param(phase, signal.SIGUSR1, marks=pytest.mark.slow) for phase in PHASES),
         *(pytest.param(phase, "file", marks=pytest.mark.slow)
           for phase in ("evaluation", "saving"))]


@pytest.mark.parametrize(("phase", "number"), CASES, ids=str)
def test_a_run_stops_in_every_phase(tiny, tmp_path, phase, number):
    run, file = tmp_path / "run", tmp_path / "begun"
    process = begin(tiny, run, f"lingering:{phase},{file}", *PHASES[phase])
    wait_for(file.exists, phase, 60)
    if number == "file":
        (run / "stop").touch()
    else:
        os.killpg(process.pid, number)
    began = time.monotonic()
    step = stopped(process, run)
    assert time.monotonic() - began < 15
    assert step == {"start": 0, "warm-up": 0, "tokens": 0, "evaluation": 4}.get(phase, step)
    assert phase != "saving" or 3 <= step < 12


def test_an_evaluation_that_was_stopped_is_made_up_for(tiny, tmp_path):
    run, file = tmp_path / "run", tmp_path / "begun"
    process = begin(tiny, run, f"lingering:evaluation,{file}", *PHASES["evaluation"])
    wait_for(file.exists, "the evaluation", 60)
    process.send_signal(signal.SIGTERM)
    assert stopped(process, run) == 4 and '"eval"' not in (run / "log.jsonl").read_text()
    goes_on(tiny, run, *PHASES["evaluation"])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [4, 8, 12]
    assert [line["step"] for line in records(run)] == list(range(1, 13))
    goes_on(tiny, run, *PHASES["evaluation"])  # finished: not once more
    assert len((run / "log.jsonl").read_text().splitlines()) == len(lines)


def test_before_torch_is_loaded_a_signal_is_heeded(tiny, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "more", *map(str, words(tiny, run))],
                               cwd=ROOT, env={**os.environ, **FIXED}, text=True,
                               preexec_fn=_heed_signals, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    wait_for(lambda: _catches(process.pid, signal.SIGUSR1), "the handler", 60)
    assert b"libtorch" not in Path(f"/proc/{process.pid}/maps").read_bytes()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == STOPPED and "Traceback" not in err, err
    assert "stopped on request" in err


def _catches(pid: int, number: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.fixture
def two_ranks(tiny, tmp_path):
    """Starts two ranks of a run that linger in a phase; then FILE-0 and FILE-1 are there."""
    group, port = [], free_port()

    def start(phase: str, file: Path) -> list[Forked]:
        for rank in ("0", "1"):
            group.append(begin(tiny, tmp_path / "run", f"lingering:{phase},{file}-{rank}",
                               *PHASES[phase], RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2",
                               LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        return group

    yield start
    for process in group:
        process.kill()


@pytest.mark.parametrize("phase", ["warm-up", pytest.param("tokens", marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_before_the_first_update_stops_all(two_ranks, tmp_path, phase):
    group = two_ranks(phase, tmp_path / "begun")
    wait_for((tmp_path / "begun-1").exists, phase, 60)
    group[1].send_signal(signal.SIGTERM)
    assert stopped(group[0], tmp_path / "run") == 0
    assert group[1].wait(20) == STOPPED


def test_the_stop_file_ends_all_ranks_and_is_gone(two_ranks, tmp_path):
    """Left behind, it would end the next start."""
    group = two_ranks("saving", tmp_path / "begun")
    wait_for((tmp_path / "begun-0").exists, "saving", 60)
    (tmp_path / "run/stop").touch()
    assert stopped(group[0], tmp_path / "run") >= 3
    assert group[1].wait(20) == STOPPED
