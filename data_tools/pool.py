"""Worker processes and the command-line frame of the data tools."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import typer

from more.errors import UserError, from_system
from more.jobs.driver import (
    WorkerDied,
    local_executor,
    local_workers,
    one_thread_each,
    run_tasks,
    usable_cores,
)


def parallel(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int = 0,
             revise: Callable[[Any], Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """Run `function` over tasks in spawned processes; pairs (task, result or exception).

    Pairs come as they finish. A worker that dies takes no other task along: its own is tried
    again, and comes back as an exception when that fails, too.

    Args:
        workers: processes; 0 = all cores that this process may use.
        revise: the task to try after a worker died on one (see `run_tasks`). Without it a single
            worker is this process: what kills it could not be left out anyway.
    """
    workers = min(workers if workers > 0 else usable_cores(), len(tasks))
    if workers <= 1 and revise is None:
        for task in tasks:
            yield task, _caught(function, task)
        return
    found = local_workers(workers, functools.partial(local_executor, keep_memory=False))
    with one_thread_each(), closing(run_tasks(function, tasks, found, revise)) as outcomes:
        for outcome in outcomes:
            yield outcome.task, _told(outcome.error) or outcome.result


def _caught(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except Exception as error:  # noqa: BLE001 - reported per task by the caller
        return error


def _told(error: BaseException | None) -> BaseException | None:
    if not isinstance(error, WorkerDied):
        return error
    return UserError(f"a worker process died ({error})",
                     fix="run the same command again, with fewer --workers if memory was short")


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
