"""The scores that a run's folders hold: stage one's own, and those of every stage two inside it.

What a row was trained on is said here and nowhere else, so that no table shows the fully
supervised reference as weak supervision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.text import Text

from more.evaluation.routes import route_letter
from more.evaluation.score_result import dominance_note, percent, ratio
from more.evaluation.words import route_lines
from more.progress import PlainTable

ORDER = ("seeds/cam", "seeds/lam", "seeds/fused", "masks/cam", "masks/lam", "masks/fused",
         "seeds/decoder", "masks/decoder")
TAGS, TRUE = "tags", "true masks"
SAME = ("set", "data", "data_digest", "images_digest")


def read_scores(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Scores under `scores/` of a run and of the stage-two folders directly inside it.

    Args:
        run: a run folder, of either stage.
        notes: gets a line for everything that could not be read.

    Returns:
        Results in their JSON form, in the order in which the stages make them, those trained on
        true masks last. Added are `folder` (of stage two inside the run, else ""), `set` (the
        name without it), `file`, `stage`, `supervision` ("tags" or "true masks") and `share`: of
        a row of stage two, its mIoU over that of its reference; None where there is none.
    """
    rows = _read_folder(run, "", about_run(run, notes, ""), notes)
    for folder, about in stage_folders(run, notes):
        found = _read_folder(run / folder, folder, about, notes)
        if not found:
            notes.append(f"{folder} is a run of stage two without scores: `more evaluate … --save "
                         f"{run / folder}/scores/NAME.json` makes them.")
        rows += found
    if not rows:
        notes.append("No scores in this run: `more evaluate` writes them.")
    for row in rows:
        row["share"] = share(row, rows)
    return sorted(rows, key=order)


def stage_folders(run: Path, notes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Names of the stage-two folders directly inside a run, with their `stage` and `supervision`;
    those trained on true masks last."""
    found = [(path.parent.name, about_run(path.parent, notes, path.parent.name))
             for path in sorted(run.glob("*/run.json"))]
    return sorted((pair for pair in found if pair[1]["stage"] == 2),
                  key=lambda pair: (pair[1]["supervision"] == TRUE, pair[0]))


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Sorting key of rows: the run's own, stage two, what was trained on true masks."""
    place = ORDER.index(row["set"]) if row["set"] in ORDER else len(ORDER)
    return (row["supervision"] == TRUE, row["folder"], place,
            not row["set"].startswith("seeds/"), row["set"], str(row.get("data")))


def reference(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of full supervision that a row of stage two is measured against.

    It is the same set of the same images of the same data (by their digests, too), made by the
    same inference route, in a folder trained on true masks; the best where there are several, so
    that no share is flattered. None for other rows, and where none fits.
    """
    if row["stage"] != 2 or row["supervision"] == TRUE:
        return None
    fitting = [other for other in rows if other["supervision"] == TRUE and other.get("miou")
               and all(other.get(key) == row.get(key) for key in SAME)
               and route_letter(str(other.get("route"))) == route_letter(str(row.get("route")))]
    return max(fitting, key=lambda other: other["miou"], default=None)


def share(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """mIoU of a row over that of its reference among `rows`; None without one."""
    full = reference(row, rows)
    return None if full is None or row.get("miou") is None else row["miou"] / full["miou"]


def stage_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines to stand beside rows of stage two: what they were trained on, what a share is."""
    second = [row for row in rows if row.get("stage") == 2]
    folders = {kind: ", ".join(dict.fromkeys(row["folder"] or "this run" for row in second
                                             if row["supervision"] == kind))
               for kind in (TAGS, TRUE)}
    lines = []
    if folders[TAGS]:
        lines.append(f"Stage two, trained on masks that come from image tags: {folders[TAGS]}.")
    if folders[TRUE]:
        lines.append(f"Stage two, trained on true masks: {folders[TRUE]}. These rows are a "
                     "reference, not weak supervision.")
    if any(row.get("share") is not None for row in rows):
        lines.append("Of full supervision: mIoU in per cent of that of the same set, images and "
                     "route in a folder trained on true masks (the best, where there are several).")
    return lines


def read_json(path: Path, notes: list[str], name: str = "") -> Any:
    """Content of a JSON file; None, and a note, when it is missing or damaged."""
    name = name or path.name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{name} is not in this run.")
    except ValueError as error:
        notes.append(f"{name} cannot be read: {error}.")
    return None


def about_run(folder: Path, notes: list[str], name: str) -> dict[str, Any]:
    """Stage and supervision of a run folder; older runs know neither and are stage one."""
    path = folder / "run.json"
    found = read_json(path, notes, f"{name}/run.json".lstrip("/")) if path.is_file() else None
    found = found if isinstance(found, dict) else {}
    return {"stage": found.get("stage", 1), "supervision": found.get("supervision", TAGS)}


def _read_folder(run: Path, folder: str, about: dict[str, Any], notes: list[str]
                 ) -> list[dict[str, Any]]:
    """The results of one run folder, each with what it was trained on in its route."""
    found = []
    for path in sorted((run / "scores").glob("*.json")):
        file = f"{folder}/scores/{path.name}".lstrip("/")
        record = read_json(path, notes, file)
        if not isinstance(record, dict) or not isinstance(record.get("classes"), dict):
            notes.append(f"{file} is not a result of `more evaluate`: left out.")
            continue
        name = record.get("name") or path.stem
        found.append({**record, **about, "name": f"{folder}: {name}" if folder else name,
                      "set": name, "folder": folder, "file": file,
                      "route": _trained(about) + str(record.get("route", "?"))})
    return found


def _trained(about: dict[str, Any]) -> str:
    """What goes before the route of a row of stage two."""
    if about["stage"] != 2:
        return ""
    return "trained on true masks: " if about["supervision"] == TRUE else "stage two: "


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
    return Group(table, *routes, *map(Text, [*dominance_notes(rows), *stage_notes(rows),
                                             *route_lines(str(row.get("route")) for row in rows)]))


def dominance_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every row whose mean FP/TP is mostly that of one class."""
    found = [(row["name"], dominance_note(row["classes"])) for row in rows]
    return [f"{name}: {note}" for name, note in found if note]


def _best(row: dict[str, Any]) -> str:
    """Best step of a row's sweep of thresholds, and where."""
    best = row.get("best_miou")
    return "–" if best is None else f"{percent(best)} ({row['best_threshold']:.2f})"
