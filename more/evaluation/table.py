"""Tables over several scores: all of a run, or one set against another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.text import Text

from more.evaluation.compare import Comparison, Image
from more.evaluation.result import percent, ratio
from more.evaluation.saved import stage_notes
from more.progress import PlainTable


def score_table(rows: Sequence[dict[str, Any]]) -> Group:
    """A rich table of `Result.to_json` dicts: one row a set, best value of the sweep where known.

    The routes are sentences: they stand below, where a narrow terminal leaves them whole.

    Args:
        rows: scores as saved by `more evaluate --save`; from `read_scores` with their `share`.
    """
    columns: list[tuple[str, str | None, Callable[[dict[str, Any]], str]]] = [
        # title, the figure that some row must have for the column to be shown, cell of a row
        ("mIoU", None, lambda row: percent(row.get("miou"))),
        ("of full supervision", "share", lambda row: percent(row.get("share"))),
        ("subset", "miou_subset", lambda row: percent(row.get("miou_subset"))),
        ("best mIoU (at)", "best_miou", _best),
        ("boundary IoU", "boundary_iou", lambda row: percent(row.get("boundary_iou"))),
        ("precision", None, lambda row: percent(row.get("precision"))),
        ("recall", None, lambda row: percent(row.get("recall"))),
        ("FP/TP", None, lambda row: ratio(row.get("confusion"))),
        ("images", None, lambda row: str(row.get("images", "–")))]
    shown = [(title, cell) for title, key, cell in columns
             if key is None or any(row.get(key) is not None for row in rows)]
    table = PlainTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("set", overflow="fold")
    for title, _ in shown:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["name"], *(cell(row) for _, cell in shown))
    routes = [Text(f"{row['name']} on {row.get('data', '?')}: {row.get('route', '?')}")
              for row in rows]
    return Group(table, *routes, *map(Text, stage_notes(rows)))


def _best(row: dict[str, Any]) -> str:
    """Best step of a row's sweep of thresholds, and where."""
    best = row.get("best_miou")
    return "–" if best is None else f"{percent(best)} ({row['best_threshold']:.2f})"


def comparison_table(found: Comparison, listed: int = 5) -> Group:
    """Two sets side by side: routes, figures of every class, the images that changed most.

    Args:
        found: from `compare`.
        listed: images shown in each direction.
    """
    keys = [("iou", "miou", "IoU"), ("boundary_iou", "boundary_iou", "boundary")]
    means, classes = found.means(), found.classes()
    keys = [key for key in keys if key[1] in means]
    table = PlainTable(show_footer=True)
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
