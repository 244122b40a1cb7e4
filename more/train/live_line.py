"""What shows that a training is alive: a live line at every update, and `status.json`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from more.progress import console
from more.train.stop import write_status

STATUS_EVERY = 1.0
"""Least seconds between two writes of `status.json` during updates."""
STATUS_SHARE = 50
"""A write that took a second is followed by one after so many: a slow disk slows no training."""
RECENT = 20
"""Updates that the shown rate is the mean of."""


class LiveLine:
    """Shows every update on a terminal; elsewhere says the first one, as records say the later.

    It asks the device for nothing: on a GPU the shown loss is that of the update before.

    Args:
        start: updates that are done.
        iterations: updates of the whole run.
        images: of an update, over all ranks.
        say: prints a line.
        every: updates between two lines of records.
    """

    def __init__(self, start: int, iterations: int, images: int, say: Callable[[str], None],
                 every: int):
        self.start, self.iterations, self.images = start, iterations, images
        self.say, self.bar, self.begun = say, None, time.monotonic()
        self.told = every <= 1  # then the first record is the first line
        self.first: float | None = None
        self.times: deque[float] = deque([self.begun], RECENT + 1)
        if console.is_terminal and start < iterations:
            self.bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"), TimeElapsedColumn(), TextColumn("eta"),
                TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task("", total=iterations, completed=start,
                                          shown="first update …")
            self.bar.start()

    def update(self, done: int, loss: float, known: bool) -> None:
        """An update is asked for.

        Args:
            done: its number, from 1.
            loss: the newest that is known.
            known: whether any is.
        """
        self.times.append(time.monotonic())
        if self.first is None:
            self.first = self.times[-1] - self.begun
        if self.bar is not None:
            loss_text = f"loss {loss:.4g}" if known else "loss …"
            self.bar.update(self.task, completed=done,
                            shown=f"{self.rate:.2f} img/s {loss_text}")
        elif known and not self.told:
            self.told = True
            self.say(f"[{self.start + 1}/{self.iterations}] total {loss:.4g} | first update after "
                     f"{self.first:.1f} s")

    @property
    def rate(self) -> float:
        """Images a second over the newest updates."""
        seconds = self.times[-1] - self.times[0]
        return self.images * (len(self.times) - 1) / max(seconds, 1e-9)

    def pause(self) -> None:
        """What comes now, an evaluation for example, does not count for the rate."""
        self.times = deque([time.monotonic()], RECENT + 1)

    def close(self) -> None:
        """Leave the line as it is."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Status:
    """Writes `status.json`; during updates at most once a second, and never for long.

    Args:
        run: run folder.
        iterations: updates of the whole run.
    """

    def __init__(self, run: Path, iterations: int):
        self.run, self.iterations, self.next = run, iterations, 0.0

    def write(self, state: str, step: int, saved: int | None = None) -> None:
        """Write it now.

        Args:
            state: "running", "finished", "stopped" or "failed".
            step: updates that are made.
            saved: see `write_status`.
        """
        write_status(self.run, state, step, self.iterations, saved)

    def update(self, done: int, saved: int) -> None:
        """Write it if it is time.

        Args:
            done: updates that are made.
            saved: how many of them are in a checkpoint.
        """
        began = time.monotonic()
        if began < self.next:
            return
        with suppress(OSError):  # the next checkpoint will say that the disk is full, or gone
            self.write("running", done, saved)
        ended = time.monotonic()
        self.next = ended + max(STATUS_EVERY, STATUS_SHARE * (ended - began))
