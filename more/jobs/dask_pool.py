"""Dask workers: somebody else's scheduler and workers, used and left as they are.

The workers are single-threaded processes, on any number of machines with a common file system.
Only paths and numbers travel. Without the package `distributed` everything else works.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from more import __version__
from more.errors import UserError
from more.jobs.dask_worker import Job, look_around, mark_name, run_once
from more.jobs.driver import Workers
from more.progress import console

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 10.0
POLL = 1.0
PACKAGE = "distributed>=2026.1,<2027"
SETUP = "in the project folder, after `source launch/setup.sh`"
COMMANDS = (f"{SETUP}: on one machine `dask scheduler`, on each one "
            "`dask worker --nthreads 1 --nworkers CORES tcp://HOST:8786`")
VERSION = (pkgutil.resolve_name, "more:__version__")


@contextmanager
def dask_workers(address: str, workers: int | None, spec: Job) -> Iterator[Workers]:
    """The workers of a running scheduler, checked, for the time of a job.

    Args:
        address: tcp://HOST:PORT (or another protocol of dask), or the scheduler's file.
        workers: use at most so many; None: all, also those that join later.
        spec: any task of the job.

    Yields:
        The workers, as `run_tasks` takes them.

    Raises:
        UserError: no package, no scheduler, no worker, or a worker that cannot do the work.
    """
    client = _connect(address)
    try:
        cluster = _Cluster(client, address, workers, spec)
        yield Workers(cluster.executor, cluster.slots, POLL)
    finally:
        client.close(timeout=5)


class _Cluster:
    """Workers of a scheduler: how many there are, and that each can do the work."""

    def __init__(self, client: Client, address: str, limit: int | None, spec: Job):
        self.client, self.address, self.limit, self.spec = client, address, limit, spec
        self.known: set[str] = set()
        self.sign = Path(mark_name(spec.out, "driver"))
        self.waiting = False
        self._check_scheduler()
        try:
            client.wait_for_workers(1, timeout=CONNECT)
        except TimeoutError as error:
            raise UserError(f"the dask scheduler at {address} has no workers",
                            fix=COMMANDS) from error
        self.slots()

    def slots(self) -> int:
        """Number of workers now (never 0: work waits for those to come); new ones are checked."""
        try:
            threads = self.client.nthreads()
        except (OSError, TimeoutError) as error:
            self._still_there(error)
            return max(1, len(self.known))
        if not threads and not self.waiting:
            console.print(f"no dask worker is left at {self.address}; waiting for one",
                          highlight=False, markup=False)
        self.waiting = not threads
        if new := set(threads) - self.known:
            self._check(new, threads)
        self.known = set(threads)
        return max(1, min(len(threads), self.limit or len(threads)))

    def executor(self) -> Executor:
        """A place for one task."""
        self._still_there()
        return _Place(self.client, self.spec.out)

    def _still_there(self, error: BaseException | None = None) -> None:
        if self.client.status in ("closing", "closed"):
            raise UserError(f"the dask scheduler at {self.address} is gone; finished work is "
                            "kept", fix="start it again, then the same command") from error

    def _check_scheduler(self) -> None:
        """The scheduler unpacks what it hands on, so it must find the project, too."""
        try:
            version = self.client.run_on_scheduler(*VERSION)
        except (ImportError, AttributeError) as error:
            version = error
        _check_version(f"scheduler {self.address}", version)

    def _check(self, new: set[str], threads: dict[str, int]) -> None:
        """Refuse workers that could not do the work, by address."""
        several = sorted(address for address in new if threads[address] != 1)
        if several:
            _refuse(several[0], f"has {threads[several[0]]} threads, which gain nothing and die "
                                "together", "dask worker --nthreads 1 --nworkers CORES …")
        for address, version in self._ask(new, *VERSION):
            _check_version(f"worker {address}", version)
        self.sign.touch()
        try:
            found = list(self._ask(new, look_around, self.spec, str(self.sign)))
        finally:
            self.sign.unlink(missing_ok=True)
        for address, problem in found:
            if isinstance(problem, Exception):
                _refuse(address, f"{type(problem).__name__}: {problem}",
                        f"start it {SETUP}")
            if problem is not None:
                _refuse(address, *problem)

    def _ask(self, workers: Iterable[str], function: Callable, *arguments: Any) -> Iterator:
        """(address, answer or exception) of the workers that are still there afterwards."""
        answers = self.client.run(function, *arguments, workers=sorted(workers),
                                  on_error="return")
        there = self.client.nthreads()
        return ((address, answers[address]) for address in sorted(answers) if address in there)


class _Place(Executor):
    """One task at a time on the cluster, wherever the scheduler puts it."""

    def __init__(self, client: Client, folder: str):
        self.client, self.folder = client, folder
        self.sent: Any = None

    def submit(self, function: Callable, task: Any) -> Future:  # type: ignore[override]
        """As in `concurrent.futures`; a death of the worker is a `BrokenExecutor`."""
        future: Future = Future()
        self.sent = self.client.submit(run_once, mark_name(self.folder, "task"), function, task,
                                       pure=False, retries=0)
        self.sent.add_done_callback(partial(_hand_over, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take back a task that has not started. One that runs ends by itself: its shard is
        either finished, or not there."""
        if self.sent is not None and not self.sent.done():
            self.sent.cancel()
        self.sent = None


def _hand_over(future: Future, sent: Any) -> None:
    """Give dask's outcome to the standard future."""
    from distributed import KilledWorker

    try:
        if sent.status == "finished":
            future.set_result(sent.result())
            return
        error = sent.exception() if sent.status == "error" else BrokenExecutor(sent.status)
        if isinstance(error, KilledWorker):
            error = BrokenExecutor(str(error))
    except Exception as lost:  # the connection, or a result that cannot be had any more
        error = BrokenExecutor(f"{type(lost).__name__}: {lost}")
    future.set_exception(error)


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f"--executor {address} needs a package that is not installed ({error})",
                        fix=f"pip install '{PACKAGE}'") from error
    where = {"address": address} if "://" in address else {"scheduler_file": address}
    try:
        return Client(**where, timeout=CONNECT, set_as_default=False, name="more")
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {address}", fix=COMMANDS) from error


def _check_version(who: str, version: Any) -> None:
    if isinstance(version, Exception):
        raise UserError(f"dask {who}: cannot import more ({version})", fix=f"start it {SETUP}")
    if version != __version__:
        raise UserError(f"dask {who}: has more {version}, not {__version__}",
                        fix=f"start it {SETUP}")


def _refuse(address: str, problem: str, fix: str) -> None:
    raise UserError(f"dask worker {address}: {problem}", fix=fix)
