"""What every data tool is made with: its command line, options they share, worker processes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Annotated, Any

import typer

from more.device import usable_cores
from more.errors import UserError, from_system
from more.jobs.driver import WorkerDied, local_executor, local_workers, one_thread_each, run_tasks

Workers = Annotated[int, typer.Option(min=0, help="processes; 0 = all cores")]
ShardSize = Annotated[int, typer.Option(min=0, help="images per shard; 0 = by set size")]
SkipBad = Annotated[bool, typer.Option(help="leave unreadable images out")]
ShareSeed = Annotated[int, typer.Option(
    min=0, max=2**32 - 1, help="another seed, other images in the shares")]
MaskValues = Annotated[list[str] | None, typer.Option(
    metavar="VALUE=CLASS",
    help="what a value in the masks means, as 255=coin; give it once for each value")]


def parallel(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int = 0,
             revise: Callable[[Any], Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """Run a function over tasks in spawned processes.

    If a worker dies, only its own task is affected: it is tried again, and ends with an exception
    when that fails, too.

    Args:
        function: of a module, since it is sent to workers.
        tasks: what to call it with.
        workers: processes; 0 = all cores that this process may use.
        revise: changes a task that a worker died on before it is tried again (see `run_tasks`).
            Without it a single worker is this process itself.

    Yields:
        Pairs of a task and its result or exception, in the order in which tasks finish.
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
    """Run a typer command; an error that the user can fix becomes a message and exit code 2.

    Args:
        main: the command; it returns the exit code.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **options: Any) -> None:
        """Run the command and end the process with its exit code."""
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
