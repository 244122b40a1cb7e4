"""Several CRF workers against one, and how long they take to start. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean

from more.bench.measure import Line, alternate
from more.bench.refine_worker import (
    HOW,
    Pair,
    Spent,
    all_bare,
    in_turn,
    load_arrays,
    make_specs,
    spent,
    whole,
)
from more.data.shards.reader import ShardSet
from more.filtering.crf import load_engine
from more.jobs.driver import local_executor, local_workers, run_tasks
from more.refinement.plan import ShardSpec


def startup_times(workers: int, rounds: int) -> list[Line]:
    """Seconds until one worker, and the last of several, has loaded its libraries."""
    def once(count: int) -> float:
        """Seconds until the last of so many workers is ready."""
        started = ready = time.perf_counter()
        for outcome in run_tasks(_ready, range(count), local_workers(count)):
            if outcome.error:
                raise outcome.error
            ready = time.perf_counter()  # ending the workers does not count
        return ready - started

    counts = sorted({1, workers})
    found = alternate({str(count): partial(once, count) for count in counts}, rounds)
    return [{"workers": count, "s until all are ready": found[str(count)]} for count in counts]


def scaling_times(pair: Pair, out: Path, workers: int, rounds: int) -> list[Line]:
    """Several workers against one; each does all images of the set, as one task.

    The workers are started before the clock is. Bare calls in the same processes, on arrays that
    they hold, give the ceiling: what cores that share caches and memory reach at best.

    Returns:
        Lines with images per second, and seconds per image of a single worker.
    """
    images, counts = len(ShardSet(pair[0])), sorted({1, workers})
    specs = [make_specs(pair, out / str(number), images)[0] for number in range(workers)]
    with _started(workers) as pools:
        candidates = {}
        for count in counts:
            candidates[f"bare {count}"] = partial(_driven, _timed_bare, [pair] * count, pools)
            candidates[f"whole {count}"] = partial(_driven, _timed_whole, specs[:count], pools)
        found = in_turn(candidates, rounds)
    lines = []
    for kind, what in (("bare", "bare CRF (ceiling)"), ("whole", "whole path")):
        for count in counts:
            one, this = found[f"{kind} 1"], found[f"{kind} {count}"]
            lines.append({"what": what, "workers": count, "images/s": count * images / this.wall,
                          "s per image of a worker": this.wall / images,
                          "CPU s per image": this.cpu / images,
                          "of workers × one": one.wall / this.wall})
    return lines


class _Lent(Executor):
    """A started worker for one run of the driver, which must not end it."""

    def __init__(self, pool: Executor):
        self.pool = pool

    def submit(self, function: Callable, /, *arguments: object, **named: object) -> Future:
        return self.pool.submit(function, *arguments, **named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the worker running."""


@contextmanager
def _started(workers: int) -> Iterator[list[Executor]]:
    pools = [local_executor() for _ in range(workers)]
    try:
        for ready in [pool.submit(_ready, 0) for pool in pools]:
            ready.result()
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _driven(function: Callable, tasks: list, pools: list[Executor]) -> Spent:
    """One task for each of as many workers, by the driver that refine uses; mean CPU of a task."""
    lent = iter(pools)
    started = time.perf_counter()
    workers = local_workers(len(tasks), lambda: _Lent(next(lent)))
    outcomes = list(run_tasks(function, tasks, workers))
    wall = time.perf_counter() - started
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    return Spent(wall, fmean(outcome.result for outcome in outcomes))


def _ready(_: int) -> None:
    """Load what a worker needs for its first image."""
    load_engine(HOW.engine)


def _timed_bare(pair: Pair) -> float:
    return spent(partial(all_bare, load_arrays(pair))).cpu


def _timed_whole(spec: ShardSpec) -> float:
    return spent(partial(whole, spec)).cpu
