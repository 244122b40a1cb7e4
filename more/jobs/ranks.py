"""Refining as one of several ranks: torchrun, srun, or the tasks of a SLURM job array.

Rank r of W makes the shards r, r + W, … with worker processes of its own, so that an image that
crashes the native library kills a worker and not the rank. Ranks meet nowhere but on the disk.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from more.data.shards.format import TEMPORARY
from more.device import SLURM_TASKS, launched_world, usable_cores
from more.errors import UserError
from more.progress import console

POLL = 1.0
OVERRIDE = "MORE_RANKS"
# What torchrun, deepspeed's launcher, mpirun (Open MPI, MPICH and Intel, MVAPICH) and a SLURM job
# array give to the processes that they start, and nobody exports in a shell.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK",
             "MV2_COMM_WORLD_RANK", "SLURM_ARRAY_TASK_ID")


@dataclass(frozen=True)
class Rank:
    """This process among its peers.

    Attributes:
        number, world: rank and number of ranks.
        cores: processes of its own that keep its part of the machine busy.
    """

    number: int = 0
    world: int = 1
    cores: int = 1

    @property
    def alone(self) -> bool:
        """No other rank writes into the same set."""
        return self.world == 1

    @property
    def counted(self) -> str:
        """What its counts are about."""
        return "images" if self.alone else f"rank {self.number} of {self.world}, images"


def announced_world() -> tuple[int, int]:
    """Rank and world size from the launcher's environment; says so where it is one of several.

    Variables that an earlier job left in a shell would otherwise make a part of the work pass for
    all of it.

    Raises:
        UserError: several ranks, but nothing shows that a launcher started them.
    """
    number, world = launched_world()
    if world > 1:
        names = "RANK and WORLD_SIZE" if "WORLD_SIZE" in os.environ else \
            f"SLURM_PROCID and {SLURM_TASKS}"
        if not was_launched(os.environ):
            raise UserError(
                f"{names} say rank {number} of {world}, but no launcher started this process: it "
                f"would make one part in {world}, and nobody the rest",
                fix=f"unset {names} to make all of it, or set {OVERRIDE}=1 where you start every "
                    "rank yourself")
        console.print(f"rank {number} of {world}: makes one shard in {world}, the other ranks the "
                      f"rest; if none were started, unset {names}", highlight=False, markup=False)
    return number, world


def was_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of its ranks.

    `MORE_RANKS=1` says so for ranks that are started by hand. `srun --pty` gives a shell to one
    task only: what is typed there is no rank, whatever SLURM says.

    Args:
        environment: variables by name.

    Returns:
        True if so.
    """
    if environment.get(OVERRIDE) == "1" or any(name in environment for name in LAUNCHERS):
        return True
    step = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return "SLURM_PROCID" in environment and step.isdigit() and int(step) > 1 and \
        not any(name in environment for name in ("SLURM_PTY_PORT", "SLURM_PTY_WIN_COL"))


def launched_rank() -> Rank:
    """Rank, world and share of the cores from the launcher's environment."""
    number, world = announced_world()
    return Rank(number, world, rank_cores(os.environ, usable_cores()))


def rank_cores(environment: Mapping[str, str], usable: int) -> int:
    """Cores for this rank of the `usable` ones.

    SLURM confines a task to its `--cpus-per-task`; without that, and under torchrun, the ranks of
    a machine share what they may all use.

    Args:
        environment: variables by name.
        usable: cores that this process may run on.

    Returns:
        1 or more.
    """
    if "LOCAL_WORLD_SIZE" in environment:
        return max(1, usable // int(environment["LOCAL_WORLD_SIZE"]))
    if "SLURM_CPUS_PER_TASK" in environment:
        return max(1, min(usable, int(environment["SLURM_CPUS_PER_TASK"])))
    here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return max(1, usable // int(here.group() if here else 1))


class Departure:
    """Ends a rank with an error under torchrun only when the others are through.

    torchrun ends every rank as soon as one ends with an error. So each rank has a file in the
    set's folder that is renamed when its share is done, and a rank with failures waits for those
    of the others. Should a rank die, torchrun ends the waiting ones. Renaming needs no space: it
    works on a full disk. Not under torchrun, or alone: does nothing.

    Args:
        out: the set; the folder must exist.
        rank: this rank.
    """

    def __init__(self, out: Path, rank: Rank):
        self.out, self.rank = out, rank
        self.needed = not rank.alone and "TORCHELASTIC_RUN_ID" in os.environ
        if self.needed:
            for path in out.glob(f"rank-{rank.number}-of-*{TEMPORARY}*"):
                path.unlink(missing_ok=True)
            self._file(rank.number, "works").touch()

    def through(self, failed: bool, sleep: Callable[[float], None] = time.sleep) -> None:
        """This rank's share is done; with failures, return only when every other's is too."""
        if not self.needed:
            return
        mine = self._file(self.rank.number, "through")
        os.replace(self._file(self.rank.number, "works"), mine)
        told = False
        while not self._everyone():
            if not failed or not mine.exists():  # the last one took all files away
                return
            if not told:
                console.print(f"rank {self.rank.number} of {self.rank.world}: has failures and "
                              "waits for the other ranks, which torchrun would end with it",
                              highlight=False, markup=False)
                told = True
            sleep(POLL)
        for number in range(self.rank.world):
            self._file(number, "through").unlink(missing_ok=True)

    def _everyone(self) -> bool:
        return all(self._file(number, "through").exists() for number in range(self.rank.world))

    def _file(self, number: int, state: str) -> Path:
        """The file of a rank; its name tells one start of torchrun from another."""
        names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        start = re.sub(r"\W", "-", "-".join(os.environ.get(name, "") for name in names))
        return self.out / f"rank-{number}-of-{self.rank.world}{TEMPORARY}{start}.{state}"
