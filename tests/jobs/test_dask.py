"""Refining over a dask cluster that is not ours: the same masks, deaths, refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from more.errors import UserError
from more.jobs import dask_pool
from more.jobs.driver import run_tasks
from more.refinement.refine import refine
from tests.conftest import ROOT
from tests.launch.project import wait_for
from tests.refinement.sets import (
    FAST,
    INLINE,
    POISON,
    kill_the_worker_on,
    logged_shard,
    poisoned_shard,
    shard_bytes,
)

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two worker processes; the jobs know no more of it than its address."""
    import dask

    # Else LocalCluster gives up a killed worker that is slow to start again (`dask worker` not).
    patience = {"distributed.deploy.lost-worker-timeout": "10 minutes"}
    with dask.config.set(patience), distributed.LocalCluster(
            processes=True, n_workers=2, threads_per_worker=1,
            dashboard_address=":0") as running:
        yield running


@pytest.fixture(scope="module")
def address(cluster) -> str:
    return cluster.scheduler_address.replace("tcp://", "dask://")


def run(seeds, data, out, **options):
    options = {"how": FAST, "rows_per_shard": 3, "progress": False, **options}
    return refine(seeds, data, out, **options)


def has_workers(cluster, count: int = 2) -> bool:
    """The user's scheduler answers, has its workers and no work of ours."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            if len(client.nthreads()) == count and not cluster.scheduler.tasks:
                return True
        time.sleep(0.1)
    return False


@pytest.mark.timeout(120)
def test_dask_makes_the_same_bytes_and_is_left_alive(sets, tmp_path, cluster, address):
    """Fault 27; and fault 25: a rerun does nothing, it does not even need the scheduler."""
    out = tmp_path / "masks"
    tally = run(*sets[:2], out, executor=address)
    assert (tally.done, tally.exit_code) == (12, 0)
    assert shard_bytes(out) == shard_bytes(sets[2])
    assert has_workers(cluster)
    tally = run(*sets[:2], out, executor="dask://127.0.0.1:1")
    assert (tally.done, tally.skipped) == (0, 12)
    with pytest.raises(UserError, match="other parameters"):
        run(*sets[:2], out, executor=address, rows_per_shard=4)


@pytest.mark.timeout(120)
def test_a_killed_dask_worker_costs_one_shard(sets, tmp_path, cluster, address):
    """Fault 23."""
    out = tmp_path / "masks"
    killed = kill_the_worker_on(out / "shard-00002.h5")
    tally = run(*sets[:2], out, executor=address, shard_function=logged_shard)
    assert killed and (tally.done, tally.exit_code) == (12, 0)
    assert sorted((tmp_path / "calls").read_text().split()) == ["0", "1", "2", "2", "3"]
    assert shard_bytes(out) == shard_bytes(sets[2])
    assert has_workers(cluster)


@pytest.mark.timeout(120)
def test_a_poison_image_costs_itself_on_dask_too(sets, tmp_path, cluster, address):
    """Fault 24: two deaths, and the neighbours are not blamed."""
    out = tmp_path / "masks"
    tally = run(*sets[:2], out, executor=address, shard_function=poisoned_shard)
    assert (tally.done, tally.exit_code) == (11, 1)
    assert [name for name, _ in tally.failures] == [POISON] and "died" in tally.failures[0][1]
    assert not list(out.glob("*.tmp.*"))
    assert run(*sets[:2], out, **INLINE).done == 1
    assert shard_bytes(out) == shard_bytes(sets[2])
    assert has_workers(cluster)


@pytest.mark.timeout(60)
def test_tasks_are_sent_only_as_dask_workers_get_free(cluster, spec):
    taken = []

    def source():
        for number in range(12):
            taken.append(number)
            yield f"task {number}"

    with dask_pool.dask_workers(cluster.scheduler_address, None, spec) as found:
        assert found.slots() == 2
        for finished, outcome in enumerate(run_tasks(str.upper, source(), found)):
            assert outcome.result.startswith("TASK") and len(taken) <= finished + 1 + 2
    assert len(taken) == 12
    with dask_pool.dask_workers(cluster.scheduler_address, 1, spec) as found:
        assert found.slots() == 1


@pytest.mark.timeout(120)
def test_ctrl_c_takes_the_work_back_and_leaves_the_workers(sets, tmp_path, cluster):
    out = tmp_path / "masks"
    code = ("import sys; from pathlib import Path\n"
            "from tests.refinement.sets import logged_shard\n"
            "from tests.jobs.test_dask import run\n"
            "run(*map(Path, sys.argv[1:4]), executor=sys.argv[4], shard_function=logged_shard,\n"
            "    rows_per_shard=1)\n")
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, (*sets[:2], out, cluster.scheduler_address))],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for((tmp_path / "calls").exists, "the first shard")
    driver.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in driver.communicate(timeout=30)[1] and driver.returncode
    assert has_workers(cluster)
    assert len((tmp_path / "calls").read_text().split()) < 12


@pytest.mark.parametrize("status", ["error", "cancelled", "lost"])
def test_what_dask_calls_a_death_is_one_for_the_driver(status):
    """KilledWorker: for example a neighbour queued behind a poison image; it is tried again."""
    there = SimpleNamespace(address="tcp://host:1")
    sent = SimpleNamespace(status=status,
                           exception=lambda: distributed.KilledWorker("task", there, 3))
    future: Future = Future()
    dask_pool._hand_over(future, sent)
    assert isinstance(future.exception(), BrokenExecutor)


def refused(address: str, spec) -> str:
    with pytest.raises(UserError) as caught, dask_pool.dask_workers(address, None, spec):
        pass
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.timeout(60)
def test_workers_that_cannot_do_the_work_are_refused_by_address(cluster, spec, monkeypatch):
    there = list(cluster.scheduler.workers)
    words = refused(cluster.scheduler_address, replace(spec, digests=("0", "1")))
    assert "another set" in words and any(worker in words for worker in there)
    monkeypatch.setattr(dask_pool, "__version__", "99")
    words = refused(cluster.scheduler_address, spec)
    assert "not 99" in words and "scheduler" in words
    monkeypatch.setattr(dask_pool._Cluster, "_check_scheduler", lambda self: None)
    words = refused(cluster.scheduler_address, spec)
    assert "not 99" in words and any(worker in words for worker in there)


@pytest.mark.timeout(60)
def test_no_scheduler_no_worker_no_package_and_threads_are_refused(spec, monkeypatch):
    monkeypatch.setattr(dask_pool, "CONNECT", 0.5)
    words = refused("tcp://127.0.0.1:1", spec)
    assert "no dask scheduler" in words
    assert "dask scheduler`" in words and "dask worker --nthreads 1 --nworkers" in words
    local = partial(distributed.LocalCluster, processes=False, dashboard_address=":0")
    with local(n_workers=1, threads_per_worker=2) as threads:
        assert "2 threads" in refused(threads.scheduler_address, spec)
    with local(n_workers=0) as empty:
        assert "no workers" in refused(empty.scheduler_address, spec)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'distributed" in refused("tcp://127.0.0.1:1", spec)


@pytest.mark.timeout(60)
def test_work_waits_for_workers_and_ends_with_the_scheduler(spec, monkeypatch):
    """All workers gone: wait, use those that come. The scheduler gone: end with an error."""
    monkeypatch.setattr(dask_pool, "CONNECT", 2)
    with distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=1,
                                  dashboard_address=":0") as cluster:
        with dask_pool.dask_workers(cluster.scheduler_address, None, spec) as found:
            cluster.scale(0)
            while cluster.scheduler.workers:
                time.sleep(0.05)
            threading.Timer(1, cluster.scale, [2]).start()
            assert [done.result for done in run_tasks(str.upper, ["a"], found)] == ["A"]
            end = time.monotonic() + 20
            while found.slots() < 2 and time.monotonic() < end:
                time.sleep(0.1)
            assert found.slots() == 2
            threading.Timer(0.5, cluster.close).start()
            with pytest.raises(UserError, match="is gone"):
                list(run_tasks(time.sleep, [3], found))
