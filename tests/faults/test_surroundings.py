"""What fails around a run is named in a sentence: loader processes, shared memory, the network."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from tests.conftest import ROOT
from tests.faults.test_stop import begin, goes_on, words
from tests.faults.test_training import _wait_for_step, status
from tests.processes import FIXED, free_port
from tests.train.conftest import command


def refused(done) -> str:
    """What a command said that ended with a sentence."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stderr.split())


def test_a_dead_loader_process_is_named_and_the_run_goes_on(tiny, tmp_path):
    run = tmp_path / "run"
    process = begin(tiny, run, "slow:0.2", "data.workers=2", "checkpoint.every=1")
    # Compiled code of the energy, first used in update 2, is loaded by a callback that swallows
    # exceptions; what a signal's handler raises just then is lost.
    _wait_for_step(run, 4, process)
    worker = psutil.Process(process.pid).children()[0]
    worker.kill()
    out, err = process.communicate(60)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert "a loader process has died" in err and str(worker.pid) in err
    assert status(run)["state"] == "failed" and status(run)["step"] >= 1
    goes_on(tiny, run)


def _small_shm(size: str, *arguments: object) -> subprocess.CompletedProcess:
    """A command in a mount namespace with a small /dev/shm."""
    if not shutil.which("unshare") or subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
            capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    shell = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return subprocess.run(["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-m", "more",
                           *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, **FIXED}, timeout=120)


def test_a_full_shared_memory_is_named(tiny, tmp_path):
    done = _small_shm("64k", *words(tiny, tmp_path / "run", "data.workers=2"))
    assert "the shared memory, /dev/shm, is full" in refused(done)


def test_a_port_in_use_is_named(tiny, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _rank(tiny, tmp_path, 0, "127.0.0.1", port)
    assert f"port {port} of 127.0.0.1 is in use" in refused(done)


@pytest.mark.parametrize("host", [
    "127.0.0.1", pytest.param("no-such-host.invalid", marks=pytest.mark.slow)])
def test_a_master_that_does_not_answer_is_named(tiny, tmp_path, host):
    port = free_port()
    assert f"{host}:{port} (MASTER_ADDR, MASTER_PORT) does not answer rank 1 of 2" in refused(
        _rank(tiny, tmp_path, 1, host, port))


def test_ranks_that_do_not_come_are_named(tiny, tmp_path):
    done = _rank(tiny, tmp_path, 0, "127.0.0.1", free_port())
    assert "not all of 2 ranks came to 127.0.0.1" in refused(done)


def _rank(tiny, folder, rank: int, host: str, port: str):
    """A rank of two that is alone."""
    from tests.processes import run

    return run("more", *words(tiny, folder / "run", "deepspeed.timeout_minutes=0.05"),
               RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
               MASTER_ADDR=host, MASTER_PORT=port, timeout=90)


@pytest.mark.parametrize("words_more", [(), ("--dry-run",)])
def test_an_unknown_backend_of_compile_is_refused(tiny, tmp_path, words_more):
    done = command(*words(tiny, tmp_path / "run", "train.compile=bogus"), *words_more)
    said = refused(done)
    assert "train.compile = 'bogus'" in said and "inductor" in said
    assert not (tmp_path / "run").exists()
