"""Several tables of one bench: the same figures printed for people or as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from more.progress import PlainTable

Line = dict[str, Any]


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
