"""The driver over executors: bounded, complete, and alive after deaths."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from more.jobs.driver import (
    THREAD_VARIABLES,
    WorkerDied,
    local_workers,
    one_thread_each,
    run_tasks,
)


def work(task: str) -> str:
    """`die:PATH` kills its process until PATH exists, `poison` always, `raise` raises."""
    kind, _, path = task.partition(":")
    if kind == "raise":
        raise ValueError("bad task")
    if kind == "poison" or (kind == "die" and not Path(path).exists()):
        if path:
            Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.upper()


def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


@pytest.mark.timeout(60)
def test_deaths_and_exceptions_stay_with_their_task(tmp_path):
    tasks = ["a", f"die:{tmp_path / 'flag'}", "poison", "raise", "b", "c"]
    outcomes = {outcome.task: outcome for outcome in run_tasks(work, tasks, local_workers(2))}
    assert set(outcomes) == set(tasks)
    assert all(outcomes[task].result == task.upper() for task in (tasks[0], tasks[1], "b", "c"))
    assert isinstance(outcomes["poison"].error, WorkerDied)
    assert isinstance(outcomes["raise"].error, ValueError)


@pytest.mark.timeout(60)
def test_a_revised_task_is_tried_instead():
    revised = run_tasks(work, ["poison"], local_workers(1), revise=lambda task: "cured")
    assert [(outcome.task, outcome.result) for outcome in revised] == [("cured", "CURED")]


def test_tasks_are_taken_only_as_workers_get_free():
    taken = []

    def source():
        for number in range(20):
            taken.append(number)
            yield str(number)

    for finished, _ in enumerate(run_tasks(work, source(), local_workers(3, threads))):
        assert len(taken) <= finished + 1 + 3
    assert len(taken) == 20


def test_no_tasks():
    assert list(run_tasks(work, [], local_workers(2, threads))) == []


def environment(_: int) -> list[str | None]:
    return [os.environ.get(name) for name in THREAD_VARIABLES]


@pytest.mark.timeout(60)
def test_workers_use_one_thread_and_the_parent_keeps_its_setting(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with one_thread_each():
        (outcome,) = run_tasks(environment, [0], local_workers(1))
    assert outcome.result == ["1", "1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
