"""One training in a run folder at a time; what a killed one left is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from more.data.shards.lock import LOCK
from more.errors import UserError
from more.train import run_lock
from more.train.distributed import World
from more.train.run_lock import sole_training
from tests.faults.test_stop import begin, goes_on, words
from tests.faults.test_training import _wait_for_step, status, step_folder
from tests.train.conftest import command

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_training_in_a_run_folder_is_refused_by_name(tiny, tmp_path, ranks):
    run = tmp_path / "run"
    first = begin(tiny, run, "slow:0.3")
    _wait_for_step(run, 1, first)
    second = command(*words(tiny, run), "--resume", "never", ranks=ranks)
    assert second.returncode != 0 and "Traceback" not in second.stderr, second.stderr
    said = " ".join(second.stderr.split())
    assert "is taken by another training" in said
    assert f"process {first.pid} on {socket.gethostname()}" in said
    assert first.wait(60) == 0 and status(run)["state"] == "finished"
    assert not list(run.glob("earlier-*")) and step_folder(run, 12).is_dir()
    assert not (run / LOCK).exists()


def test_the_place_of_a_killed_training_with_loader_workers_is_taken_over(tiny, tmp_path):
    """For some seconds its workers live on, with all that they inherited."""
    run = tmp_path / "run"
    first = begin(tiny, run, "slow:0.2", "data.workers=2", "checkpoint.every=1")
    _wait_for_step(run, 2, first)
    first.kill()
    first.wait(10)
    goes_on(tiny, run, "checkpoint.every=3")
    assert json.loads((run / "config.json").read_text())["checkpoint"]["every"] == 3


def test_only_rank_0_locks_and_all_ranks_are_refused(tmp_path, monkeypatch):
    second = World(1, 2, 1, 2, torch.device("cpu"))
    monkeypatch.setattr(World, "agree", lambda self, value: value)
    with sole_training(tmp_path, ALONE), sole_training(tmp_path, second):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    monkeypatch.setattr(World, "agree", lambda self, value: ("run: is taken", "wait"))
    with pytest.raises(UserError, match="run: is taken"), sole_training(tmp_path, second):
        raise AssertionError("not refused")


def _gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_stale_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"pid": _gone(), "host": socket.gethostname()}))
    with sole_training(tmp_path, ALONE):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_living_owner_is_not_waited_for(tmp_path):
    hold = ("import sys, time; from more.data.shards.lock import folder_lock\n"
            "with folder_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        owner.stdout.readline()
        began = time.monotonic()
        with pytest.raises(UserError, match=f"process {owner.pid} on "), \
                sole_training(tmp_path, ALONE):
            raise AssertionError("not refused")
        assert time.monotonic() - began < 1
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()


def test_a_group_that_begins_again_waits_for_another_host(monkeypatch):
    """Rank 0 may have moved; the lock of the lost machine ages meanwhile."""
    owner = {"pid": 1, "host": "elsewhere"}
    assert run_lock._patience(owner) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_lock._patience(owner) == run_lock.ELSEWHERE
