"""Fault 17: the converter is killed at any moment; the same command finishes the set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_tools.tool import parallel
from tests.data_tools.layout import digests, tool, voc_folder


def _square(value):
    if value == 3:
        raise ValueError("three")
    return value * value


def _die_on_three(value):
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_reports_per_task(workers):
    results = dict(parallel(_square, [1, 2, 3, 4], workers))
    assert str(results.pop(3)) == "three" and results == {1: 1, 2: 4, 4: 16}


def test_dead_worker_does_not_hang():
    results = dict(parallel(_die_on_three, [1, 2, 3, 4], 2))
    assert len(results) == 4 and "a worker process died" in str(results[3])


def _kill_and_finish(root, out, kills, seed):
    arguments = (root, out, "--split", "train", "--shard-size", 4)
    command = [sys.executable, "-m", "data_tools.voc", *map(str, arguments), "--workers", "2"]
    rng, killed = np.random.default_rng(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 20
        while not list(out.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.01)  # past the imports
        time.sleep(rng.uniform(0, 0.9))
        process.kill()  # the parent alone: its workers must not outlive it
        killed += process.wait() == -signal.SIGKILL
        time.sleep(rng.uniform(0, 0.3))
    assert killed
    done = tool("voc", *arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_converter_ends_with_the_same_bytes(tmp_path, kills):
    root = voc_folder(tmp_path / "voc", images=40, size=(160, 200))
    assert tool("voc", root, tmp_path / "whole", "--split", "train",
                "--shard-size", 4).returncode == 0
    _kill_and_finish(root, tmp_path / "set", kills, seed=kills)
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_a_worker_whose_parent_died_during_its_start_ends(tmp_path):
    """By then its parent is another process: it has to know whom to look for."""
    code = ("import os, sys, time\n"
            "from more.jobs.driver import _follow\n"
            "_follow(int(sys.argv[1]))\n"
            "time.sleep(60)\n")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert subprocess.run([sys.executable, "-c", code, str(gone.pid)], timeout=30,
                          check=False).returncode == 1


def test_workers_end_with_a_killed_parent(tmp_path):
    code = ("import sys, time\n"
            "from data_tools.tool import parallel\n"
            "from tests.data_tools.test_interruption import _sleep_and_tell\n"
            "list(parallel(_sleep_and_tell, [(sys.argv[1], k) for k in range(2)], 2))\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 30
    while len(pids := list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    process.kill()
    process.wait()
    while any(os.path.exists(f"/proc/{path.name}") for path in pids):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)


def _sleep_and_tell(task):
    folder, _ = task
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    time.sleep(60)
