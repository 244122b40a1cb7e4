"""Tables over several scores: all of a run, or one set against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from more.evaluation.compare import Comparison, Image
from more.evaluation.result import percent, ratio


def score_table(rows: Sequence[dict[str, Any]]) -> Group:
    """A rich table of `Result.to_json` dicts: one row a set, best value of the sweep where known.

    The routes are sentences: they stand below, where a narrow terminal leaves them whole.

    Args:
        rows: scores as saved by `more evaluate --save`.
    """
    subset = any(row.get("miou_subset") is not None for row in rows)
    swept = any(row.get("best_miou") is not None for row in rows)
    outlined = any(row.get("boundary_iou") is not None for row in rows)
    table = Table(show_lines=False)
    table.add_column("set", overflow="fold")
    names = ["mIoU", *(["subset"] if subset else []), *(["best mIoU (at)"] if swept else []),
             *(["boundary IoU"] if outlined else []), "precision", "recall", "FP/TP", "images"]
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
        if outlined:
            cells.append(percent(row.get("boundary_iou")))
        cells += [percent(row.get("precision")), percent(row.get("recall")),
                  ratio(row.get("confusion")),
                  str(row.get("images", "–"))]
        table.add_row(row["name"], *cells)
    routes = [Text(f"{row['name']} on {row.get('data', '?')}: {row.get('route', '?')}")
              for row in rows]
    return Group(table, *routes)


def comparison_table(found: Comparison, listed: int = 5) -> Group:
    """Two sets side by side: routes, figures of every class, the images that changed most.

    Args:
        found: from `compare`.
        listed: images shown in each direction.
    """
    keys = [("iou", "miou", "IoU"), ("boundary_iou", "boundary_iou", "boundary")]
    means, classes = found.means(), found.classes()
    keys = [key for key in keys if key[1] in means]
    table = Table(show_footer=True)
    table.add_column("class", footer="mean")
    for _, mean, title in keys:
        for head, cell in zip((f"{title} A", f"{title} B", "A − B"), _cells(means[mean]),
                              strict=True):
            table.add_column(head, justify="right", footer=cell)
    for name, row in classes.items():
        table.add_row(name, *(cell for key, _, _ in keys for cell in _cells(row[key])))
    lines = [f"{side}: {record['name']}: {record['route']}"
             for side, record in (("A", found.a), ("B", found.b))]
    below = [*found.notes, _other_means(means)]
    for title, images in (("A better", found.better()), ("A worse", found.worse())):
        if found.images:
            below.append(f"{title}: {len(images)} images{_most(images[:listed])}")
    return Group(*map(Text, lines), table, *map(Text, below),
                 *(Text(f"warning: {text}", style="yellow") for text in found.warnings))


def _cells(figures: dict[str, float | None]) -> tuple[str, str, str]:
    change = figures["difference"]
    return (percent(figures["a"]), percent(figures["b"]),
            "–" if change is None else f"{100 * change:+.2f}")


def _other_means(means: dict[str, dict[str, float | None]]) -> str:
    """The means that have no column, as A / B."""
    shown = [("miou_subset", "mIoU of the subset", percent), ("precision", "precision", percent),
             ("recall", "recall", percent), ("confusion", "FP/TP", ratio),
             ("pixel_accuracy", "pixel accuracy", percent), ("best_miou", "best mIoU", percent)]
    return "A / B: " + ", ".join(
        f"{title} {show(means[key]['a'])} / {show(means[key]['b'])}"
        for key, title, show in shown if key in means)


def _most(images: list[Image]) -> str:
    """`, most img_1 (12.00 → 34.00)`, from B to A."""
    texts = [f"{item.id} ({percent(item.b)} → {percent(item.a)})" for item in images]
    return f", most (B → A): {', '.join(texts)}" if texts else ""
