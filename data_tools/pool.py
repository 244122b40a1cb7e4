"""Worker processes and the command-line frame of the data tools."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from typing import Any

import typer

from more.errors import UserError, from_system


def parallel(function: Callable[[Any], Any], tasks: Sequence[Any],
             workers: int = 0) -> Iterator[tuple[Any, Any]]:
    """Run `function` over tasks in spawned processes; pairs (task, result or exception).

    Pairs come as they finish. One worker runs in this process. A worker that dies takes only
    the unfinished tasks along: they come back with the exception.
    """
    workers = min(workers if workers > 0 else os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield task, _caught(function, task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent,
                             initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], _caught(lambda _, f=future: f.result(), None)


def _caught(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except BrokenExecutor:
        return UserError("a worker process died", fix="run the same command again")
    except Exception as error:  # noqa: BLE001 - reported per task by the caller
        return error


def _end_with_parent(parent: int) -> None:
    """Keep a worker from outliving a killed parent, even one killed while the worker starts."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def command(main: Callable[..., int]) -> None:
    """Run a typer command; what the user can mend becomes a message and exit code 2."""

    @functools.wraps(main)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            code = main(*args, **options)
        except (UserError, OSError) as error:
            known = error if isinstance(error, UserError) else from_system(error)
            if known is None:
                raise
            print(f"error: {known}", file=sys.stderr)
            code = 2
        raise typer.Exit(code)

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                      context_settings={"help_option_names": ["-h", "--help"]})
    app.command()(guarded)
    app()
