"""Fault 2: a rank dies. All ranks end, the rank is named, the same command finishes the run."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest

from more.train.stop import STOPPED
from tests.conftest import ROOT
from tests.faults.nodes import steps
from tests.faults.test_training import status, step_folder
from tests.launch.project import (
    _heed_signals,
    clean_environment,
    ended,
    environment_folder,
    family,
    kill,
    wait_for,
)

STEPS = 24


@pytest.fixture
def start(tiny, tmp_path):
    """Starts launch/train.sh with two ranks of the tiny run; afterwards no process is left.

    What it starts is the first of a process group.
    """
    programs = environment_folder(tmp_path / "programs", ROOT)
    started: list[subprocess.Popen] = []

    def call(**extra: str) -> subprocess.Popen:
        command = ["bash", "launch/train.sh", tiny["config"], "--train", tiny["train"],
                   "--run", tmp_path / "run", "--set", f"train.iterations={STEPS}",
                   "--set", "checkpoint.every=5"]
        variables = {"RANKS": "2", "MORE_VENV": os.path.relpath(programs, ROOT), **extra}
        started.append(subprocess.Popen(
            list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_heed_signals,
            env=clean_environment(**variables)))
        return started[-1]

    yield call
    for running in started:
        kill(family(running.pid))


def rank_process(running: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of a rank among the descendants of a launcher."""
    for process in family(running.pid)[1:]:
        try:
            if process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"rank {rank} does not run")


def test_a_killed_rank_ends_all_and_is_named_and_the_run_goes_on(start, tmp_path):
    running = start()
    wait_for(lambda: len(steps(tmp_path / "run")) >= 6, "six steps", 120)
    everyone = family(running.pid)
    kill([rank_process(running, 1)])
    began = time.monotonic()
    done = ended(running, 60)
    assert time.monotonic() - began < 45  # torchrun gives the others 30 s
    assert done.returncode not in (0, 75), done.stdout
    assert "rank      : 1" in done.stdout and "SIGKILL" in done.stdout, done.stdout
    psutil.wait_procs(everyone, timeout=5)
    assert not [process for process in everyone if process.is_running()]
    done = ended(start(), 120)
    assert done.returncode == 0, done.stdout
    assert "resumed after" in done.stdout
    assert steps(tmp_path / "run")[-1] == STEPS


def stopped_and_goes_on(running, start, run, ranks: str) -> None:
    done = ended(running, 90)
    assert done.returncode == STOPPED, done.stdout
    assert "Traceback" not in done.stdout and "stopped on request" in done.stdout
    found = status(run)
    assert found["state"] == "stopped" and step_folder(run, found["step"]).is_dir()
    done = ended(start(RANKS=ranks), 120)
    assert done.returncode == 0 and f"resumed after {found['step']} updates" in done.stdout


def test_ctrl_c_to_the_group_of_one_rank_saves_and_ends_with_75(start, tmp_path):
    running = start(RANKS="1")
    wait_for(lambda: len(steps(tmp_path / "run")) >= 3, "three steps", 120)
    os.killpg(running.pid, signal.SIGINT)
    stopped_and_goes_on(running, start, tmp_path / "run", "1")


@pytest.mark.slow
def test_sigterm_to_all_processes_saves_and_ends_with_75(start, tmp_path):
    """As a container's runtime or a batch system ends a job: script, torchrun, ranks, all."""
    running = start()
    wait_for(lambda: len(steps(tmp_path / "run")) >= 3, "three steps", 120)
    for process in family(running.pid):
        process.terminate()
    stopped_and_goes_on(running, start, tmp_path / "run", "2")
