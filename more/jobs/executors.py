"""Who does the work: `--executor local`, `ranks`, or a dask scheduler."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from more.device import usable_cores
from more.errors import UserError
from more.jobs.dask_worker import Job
from more.jobs.driver import Workers, local_workers
from more.jobs.ranks import Rank, launched_rank

FORMS = "local, ranks, dask://HOST:PORT, tcp://HOST:PORT or the path of a scheduler file"


@dataclass(frozen=True)
class Choice:
    """An executor, chosen but not started.

    Attributes:
        address: dask's scheduler or its file; None: processes of this machine.
        rank: this process among those that share the set.
    """

    address: str | None = None
    rank: Rank = field(default_factory=lambda: Rank(cores=usable_cores()))

    def workers(self, number: int | None, spec: Job,
                make_local: Callable[[], Executor]) -> AbstractContextManager[Workers]:
        """The workers, for the time of a job.

        Args:
            number: how many; None: one for each core of this rank, or all of the cluster.
            spec: any task of the job.
            make_local: makes a worker on this machine.

        Returns:
            A context with the workers, as `run_tasks` takes them.
        """
        if self.address is None:
            return nullcontext(local_workers(number or self.rank.cores, make_local))
        from more.jobs.dask_pool import dask_workers

        return dask_workers(self.address, number, spec)


def choose(executor: str) -> Choice:
    """Read the value of `--executor`.

    Args:
        executor: one of `FORMS`.

    Returns:
        What was chosen; nothing is started yet.

    Raises:
        UserError: neither a known name, an address, nor an existing file.
    """
    if executor == "local":
        return Choice()
    if executor == "ranks":
        return Choice(rank=launched_rank())
    protocol, mark, rest = executor.partition("://")
    if mark and protocol and rest:
        return Choice(f"tcp://{rest}" if protocol == "dask" else executor)
    if Path(executor).is_file():
        return Choice(executor)
    raise UserError(f"--executor {executor}: neither an executor nor the file of a dask scheduler",
                    fix=f"give {FORMS}")
