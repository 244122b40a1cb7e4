"""`more doctor`: is this machine fit for a training, and what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from more.doctor import machine, storage
from more.doctor.probes import Check

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
Question = Callable[[], Iterator[Check]]


def checks(folder: Path, quick: bool = False) -> list[Check]:
    """Make all checks; one that raises an error becomes a warning.

    Args:
        folder: a run folder, where checkpoints would go; it need not exist. Nothing is left in it.
        quick: leave out the test with two processes.

    Returns:
        The results.
    """
    questions: dict[str, Question] = {
        "python": machine.python, "packages": machine.packages, "device": machine.device,
        "precision": machine.precision, "deepspeed": machine.deepspeed,
        "extension locks": machine.extension_locks,
        "shared memory": lambda: storage.shared_memory(storage.settings(folder)),
        "open files": storage.open_files,
        "file locks": lambda: storage.file_locks(folder),
        "replacing": lambda: storage.replacing(folder),
        "disk": lambda: storage.disk(folder, storage.settings(folder)),
        "clock": lambda: storage.clock(folder), "crf": machine.crf}
    if not quick:
        questions["two processes"] = machine.pair
    return [check for name, ask in questions.items() for check in guarded(name, ask)]


def guarded(name: str, ask: Question) -> list[Check]:
    """Make one check.

    Args:
        name: for a warning if the check itself fails.
        ask: makes the check.

    Returns:
        Its results, or a warning with the error.
    """
    found: list[Check] = []
    try:
        for check in ask():
            found.append(check)
    except Exception as error:  # noqa: BLE001 - whatever is broken here, the others go on
        found.append(Check(name, "warning",
                           f"could not be checked: {type(error).__name__}: {error}",
                           "look at this message; training may meet the same error"))
    return found


def report(found: list[Check], as_json: bool = False) -> int:
    """Print the results, and what to do about each that is not ok.

    Args:
        found: the results.
        as_json: print them as JSON.

    Returns:
        The exit code: 1 if there is a problem, else 0.
    """
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    else:
        out, table = Console(), Table("check", "state", "what")
        for check in found:
            table.add_row(check.name, f"[{COLOURS[check.state]}]{check.state}[/]",
                          escape(check.what))
        out.print(table)
        for check in found:
            if check.state != "ok":
                out.print(f"{check.name}: {check.what}\n  fix: {check.fix}", highlight=False,
                          markup=False, soft_wrap=True)
    return int(any(check.state == "problem" for check in found))


def doctor(folder: Path, quick: bool = False, as_json: bool = False) -> int:
    """Make all checks and print the results; see `checks` and `report`."""
    return report(checks(folder, quick), as_json)
