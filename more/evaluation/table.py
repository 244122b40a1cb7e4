"""One table over several saved scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from more.evaluation.result import percent, ratio


def score_table(rows: Sequence[dict[str, Any]]) -> Group:
    """A rich table of `Result.to_json` dicts: one row a set, best value of the sweep where known.

    The routes are sentences: they stand below, where a narrow terminal leaves them whole.

    Args:
        rows: scores as saved by `more evaluate --save`.
    """
    subset = any(row.get("miou_subset") is not None for row in rows)
    swept = any(row.get("best_miou") is not None for row in rows)
    table = Table(show_lines=False)
    table.add_column("set")
    names = ["mIoU", *(["subset"] if subset else []), *(["best mIoU (at)"] if swept else []),
             "precision", "recall", "FP/TP", "images"]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [percent(row.get("miou"))]
        if subset:
            cells.append(percent(row.get("miou_subset")))
        if swept:
            best = row.get("best_miou")
            cells.append("–" if best is None
                         else f"{percent(best)} ({row['best_threshold']:.2f})")
        cells += [percent(row.get("precision")), percent(row.get("recall")),
                  ratio(row.get("confusion")),
                  str(row.get("images", "–"))]
        table.add_row(row["name"], *cells)
    routes = [Text(f"{row['name']} on {row.get('data', '?')}: {row.get('route', '?')}")
              for row in rows]
    return Group(table, *routes)
