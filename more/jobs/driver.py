"""A bounded, crash-proof driver over any `concurrent.futures.Executor`, and the local executor.

A process pool takes the whole input at once, and one killed worker breaks it for every task in
flight. So each worker is a pool of its own with one task at a time: a death costs one task, the
guilty task is known, and no more tasks are out than there are workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from more.device import keep_freed_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
_END = object()
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task ended: with a result, or with the error that ended it."""

    task: Task
    result: Result | None = None
    error: BaseException | None = None


class WorkerDied(Exception):
    """The worker process was killed or crashed on this task each time it was tried."""


@dataclass(frozen=True)
class Workers:
    """Workers as `run_tasks` wants them.

    Attributes:
        make_executor: makes one worker, when a task is at hand for it and after a death. What it
            raises ends the job.
        slots: number of workers there are now, each for one task at a time; at least 1.
        poll: seconds after which `slots` is asked again while nothing finishes; None: not before.
    """

    make_executor: Callable[[], Executor]
    slots: Callable[[], int]
    poll: float | None = None


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: Workers,
              revise: Callable[[Task], Task] | None = None,
              retries: int = 2) -> Iterator[Outcome[Task, Result]]:
    """Run `function` on every task; yield outcomes as they finish, in any order.

    Args:
        function: importable in the workers. An exception it raises fails its task only.
        tasks: picklable; taken lazily, never more ahead than there are workers.
        workers: who runs them.
        revise: called with the task on which a worker died; the task to try instead, for example
            without the part that was being worked on.
        retries: how often such a task is tried again before it is given up as `WorkerDied`; a
            revised task starts anew.

    Yields:
        How each task ended.
    """
    queue, again = iter(tasks), deque()
    pools: list[Executor] = []
    idle: list[int] = []
    flying: dict[Future, tuple] = {}
    try:
        while True:
            slots = workers.slots()
            while len(flying) < slots:
                task, deaths = again.popleft() if again else (next(queue, _END), 0)
                if task is _END:
                    break
                if not idle:
                    idle.append(len(pools))
                    pools.append(workers.make_executor())
                slot = idle.pop()
                flying[_submit(pools[slot], function, task)] = slot, task, deaths
            if not flying:
                return
            for future in wait(flying, workers.poll, return_when=FIRST_COMPLETED).done:
                slot, task, deaths = flying.pop(future)
                idle.append(slot)
                error = future.exception()
                if not isinstance(error, BrokenExecutor):
                    yield Outcome(task, None if error else future.result(), error)
                    continue
                pools[slot].shutdown(wait=True)
                pools[slot] = workers.make_executor()
                revised = revise(task) if revise else task
                if revised == task and deaths >= retries:
                    yield Outcome(task, error=WorkerDied(f"the worker died {deaths + 1} times"))
                else:
                    again.append((revised, deaths + 1 if revised == task else 0))
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: Executor, function: Callable[[Task], Result], task: Task) -> Future:
    try:
        return pool.submit(function, task)
    except BrokenExecutor as error:  # the worker died idle: let `wait` report it
        future: Future = Future()
        future.set_exception(error)
        return future


def local_workers(number: int, make_executor: Callable[[], Executor] | None = None) -> Workers:
    """A fixed number of workers on this machine; by default processes."""
    return Workers(make_executor or local_executor, lambda: number)


def local_executor(keep_memory: bool = True) -> Executor:
    """One spawned process; it ends with its parent.

    Args:
        keep_memory: it keeps what it frees for the next image; faster where images need much.

    Returns:
        A pool of one process.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start_worker,
                               initargs=(os.getpid(), keep_memory))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread in OpenMP and BLAS (read when they load)."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(parent: int, keep_memory: bool) -> None:
    import cv2

    cv2.setNumThreads(1)
    if keep_memory:
        keep_freed_memory()  # an image needs as much again as the one before
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends workers without a traceback
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """End this process when its parent is gone; a killed parent closes no queue."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
