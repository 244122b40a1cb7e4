"""What all benches share: times taken in turn on a busy machine, and tables of what was found."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from more.progress import PlainTable

Line = dict[str, Any]  # of a table: value by column


@dataclass(frozen=True)
class Row:
    """One line of a table: what, seconds per unit, units per second, ratio to another line."""

    name: str
    seconds: float
    per_second: float
    against: str = ""
    ratio: float | None = None


def alternate(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median over rounds of what each candidate returns; every round runs all of them in turn.

    Args:
        candidates: by name; each does its work once and returns seconds per unit.
        rounds: at least 1; one more round comes first and is not counted.
    """
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            seconds = run()
            if number:
                seen[name].append(seconds)
    return {name: statistics.median(values) for name, values in seen.items()}


def timed(work: Callable[[Any], Any], units: list[Any]) -> float:
    """Seconds of wall clock per unit."""
    started = time.perf_counter()
    for unit in units:
        work(unit)
    return (time.perf_counter() - started) / len(units)


def rows(seconds: Mapping[str, float], against: Mapping[str, str]) -> list[Row]:
    """Lines for a table; `against` says for a candidate whose speed it is compared with."""
    return [Row(name, value, 1 / value, against.get(name, ""),
                seconds[against[name]] / value if name in against else None)
            for name, value in seconds.items()]


def show(title: str, lines: list[Row], about: Mapping[str, Any], unit: str, as_json: bool) -> None:
    """Print a table, or JSON with the same figures."""
    if as_json:
        print(json.dumps({"bench": title, **about, "rows": [asdict(line) for line in lines]},
                         indent=1))
        return
    table = PlainTable("what", f"µs per {unit}", f"{unit}s/s", "speed against", title=title)
    for line in lines:
        ratio = f"{line.ratio:.2f} × {line.against}" if line.ratio is not None else ""
        table.add_row(line.name, f"{line.seconds * 1e6:.0f}", f"{line.per_second:.0f}", ratio)
    Console().print(table)
    Console().print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)


def show_tables(name: str, tables: Mapping[str, list[Line]], about: Mapping[str, Any],
                notes: list[str], as_json: bool) -> None:
    """Print the tables of a bench.

    Args:
        name: of the bench.
        tables: lines by title; lines of one table have the same keys, which head its columns.
        about: facts about the run.
        notes: sentences below the tables.
        as_json: print one JSON object instead, with figures that are not rounded.
    """
    if as_json:
        print(json.dumps({"bench": name, **about, **tables, "notes": notes}, indent=1))
        return
    for title, lines in tables.items():
        if lines:
            # Few lines: the widest table just fits into 80 columns.
            table = PlainTable(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
            for key in lines[0]:
                number = all(isinstance(line[key], int | float | None) for line in lines)
                table.add_column(key, justify="right" if number else "left")
            for line in lines:
                table.add_row(*map(_cell, line.values()))
            Console().print(table)
    for text in [", ".join(f"{key} {_cell(value)}" for key, value in about.items()), *notes]:
        Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    """A figure with three digits; nothing for None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
