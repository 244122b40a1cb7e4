"""What a job shows: progress with remaining time and rate, lines of text, tables, final counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

NEXT_LINES = "MORE_NEXT"
"""Variable that is "off" where a command is one of many: then nobody follows its `next:` line."""

console = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """Print a line for the user to stderr, as it is: brackets in names are no markup."""
    console.print(text, highlight=False, markup=False)


class PlainTable(Table):
    """A table that shows text as it is: names of classes and files may hold brackets."""

    def __init__(self, *headers: str, title: str | Text | None = None,
                 caption: str | Text | None = None, **options: Any):
        super().__init__(*headers, title=_as_it_is(title), caption=_as_it_is(caption), **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        """As rich's."""
        super().add_column(_as_it_is(header), _as_it_is(footer), **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As rich's."""
        super().add_row(*map(_as_it_is, cells), **options)


def _as_it_is(cell: Any) -> Any:
    return Text(cell) if isinstance(cell, str) else cell


class _Rate(ProgressColumn):
    """Units per second over the life of the task."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else "", style="cyan")


class Tracker:
    """A running job reports its progress here.

    Args:
        total: number of units the job has.
        description: what is being done.
        unit: name of a unit in the plural.
        progress: the bar; None prints plain lines.
    """

    def __init__(self, total: int, description: str, unit: str, progress: Progress | None):
        self.total, self.description, self.unit = total, description, unit
        self.count, self.started, self.printed = 0, time.monotonic(), time.monotonic()
        self.progress = progress
        self.task = progress.add_task(description, total=total) if progress else None

    def advance(self, n: int = 1) -> None:
        """Count `n` finished units."""
        self.count += n
        if self.progress is not None:
            self.progress.advance(self.task, n)
        elif time.monotonic() - self.printed > 10 or self.count >= self.total:
            self.printed = time.monotonic()
            self._line()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        (self.progress.console if self.progress else console).print(text, highlight=False,
                                                                    markup=False)

    def _line(self) -> None:
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = self.count / seconds
        left = (self.total - self.count) / rate if rate else 0.0
        print(f"{self.description}: {self.count}/{self.total} {self.unit}, "
              f"{rate:.1f} {self.unit}/s, {left:.0f} s left", file=sys.stderr, flush=True)


class _Silent(Tracker):
    def _line(self) -> None:
        """Say nothing (`disable=True`)."""


@contextmanager
def track(total: int, description: str, unit: str = "images",
          disable: bool = False) -> Iterator[Tracker]:
    """A progress bar on a terminal, a plain line every ten seconds elsewhere.

    Args:
        total: number of units the job has.
        description: what is being done, for the start of the line.
        unit: name of a unit in the plural.
        disable: show nothing (ranks other than 0).

    Yields:
        What to report progress to.
    """
    if disable:
        yield _Silent(total, description, unit, None)
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   _Rate(unit), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield Tracker(total, description, unit, progress)
    else:
        yield Tracker(total, description, unit, None)


@dataclass
class Tally:
    """Counts of a job, and what its summary says.

    Attributes:
        what: name of a unit in the plural.
        done: finished units.
        skipped: units that were finished before or left out.
        failures: name and reason of units that failed.
        notes: further things to say, with the number of units each is about.
    """

    what: str = "images"
    done: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def ok(self, n: int = 1) -> None:
        """Count finished units."""
        self.done += n

    def skip(self, n: int = 1) -> None:
        """Count units that were finished before."""
        self.skipped += n

    def fail(self, name: str, why: str) -> None:
        """Record a unit that failed, by name and reason."""
        self.failures.append((name, why))

    def note(self, what: str, n: int = 1) -> None:
        """Count something that happened to `n` units; the summary names it if it ever happened."""
        if n:
            self.notes[what] = self.notes.get(what, 0) + n

    def merge(self, other: Tally) -> None:
        """Add another tally's counts."""
        self.done += other.done
        self.skipped += other.skipped
        self.failures.extend(other.failures)
        for what, count in other.notes.items():
            self.note(what, count)

    @property
    def exit_code(self) -> int:
        """0 when nothing failed, 1 otherwise."""
        return 1 if self.failures else 0

    def summary(self) -> str:
        """`done 10, skipped 2, failed 1 images`, one line per note and failure (first 20)."""
        counts = (f"{self.what}: done {self.done}, skipped {self.skipped}, "
                  f"failed {len(self.failures)}")
        lines = [f"  {name}: {why}" for name, why in self.failures[:20]]
        if len(self.failures) > 20:
            lines.append(f"  … and {len(self.failures) - 20} more")
        notes = [f"  {what}: {count}" for what, count in self.notes.items()]
        return "\n".join([counts, *notes, *lines])

    def to_json(self) -> dict[str, Any]:
        """Counts, notes and all failures by name and reason, as JSON values."""
        return {"unit": self.what, "done": self.done, "skipped": self.skipped,
                "failed": len(self.failures), "notes": dict(self.notes),
                "failures": [{"name": name, "why": why} for name, why in self.failures]}

    def print(self) -> None:
        """Write the summary to stderr."""
        say(self.summary())
