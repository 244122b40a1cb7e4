"""Two sets side by side: both scored on the images that both hold, and what changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.routes import route_letter
from more.evaluation.score import evaluate
from more.evaluation.score_result import dominance_note, percent, plain, ratio
from more.evaluation.words import route_lines
from more.progress import PlainTable

MEANS = ("miou", "miou_subset", "boundary_iou", "pixel_accuracy", "mean_accuracy", "precision",
         "recall", "confusion", "best_miou")
PER_CLASS = ("iou", "boundary_iou", "precision", "recall", "confusion")


@dataclass(frozen=True)
class Image:
    """Mean IoU of one image on both sides."""

    id: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """A less B."""
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """A against B.

    Attributes:
        a: result of A in its JSON form.
        b: result of B in its JSON form.
        images: mean IoU of every image; empty for a saved B.
        warnings: why some figures should not be compared.
        notes: which images were compared.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    images: list[Image] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def means(self) -> dict[str, dict[str, float | None]]:
        """Figures over all classes that both sides have: `a`, `b` and `difference`."""
        return {key: _both(self.a[key], self.b[key]) for key in MEANS
                if key in self.a and key in self.b}

    def classes(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """For every class, its figures: `a`, `b` and `difference`."""
        return {name: {key: _both(row[key], self.b["classes"][name][key]) for key in PER_CLASS
                       if key in row and key in self.b["classes"][name]}
                for name, row in self.a["classes"].items()}

    def better(self) -> list[Image]:
        """Images that A does better, the greatest difference first."""
        return sorted((item for item in self.images if item.difference > 0),
                      key=lambda item: -item.difference)

    def worse(self) -> list[Image]:
        """Images that A does worse, the greatest difference first."""
        return sorted((item for item in self.images if item.difference < 0),
                      key=lambda item: item.difference)

    def to_json(self, listed: int = 12) -> dict[str, Any]:
        """The form of `evaluate --against B --json`; differences are A less B."""
        better, worse = ([{"id": item.id, **_both(item.a, item.b)} for item in side[:listed]]
                         for side in (self.better(), self.worse()))
        return plain({"comparison": {
            "a": self.a, "b": self.b, "means": self.means(), "classes": self.classes(),
            "better": better, "worse": worse, "warnings": self.warnings, "notes": self.notes}})


def compare(path: Path, against: Path, data: Path, name: str | None = None,
            against_name: str | None = None, **options: Any) -> Comparison:
    """Score a set against another one, or against a saved score.

    Args:
        path: A, a set of seeds or masks.
        against: B, another set, scored on the same images; or a JSON file of
            `more evaluate --save`, of which only sums over its images are known.
        data: image set with the true masks of both.
        name: what to call A.
        against_name: what to call B.
        options: as for `evaluate`.

    Raises:
        UserError: no image in common, B was scored on another data set, or a cause of `evaluate`.
    """
    path, against = Path(path), Path(against)
    if not against.is_dir():
        a = evaluate(path, data, name=name, **options).to_json()
        return _with_saved(a, read_saved(against), against)
    ids, note = _shared(path, against)
    first = evaluate(path, data, name=name, only=ids, **options)
    second = evaluate(against, data, name=against_name, only=ids, **options)
    a, b = first.to_json(), second.to_json()
    images = [Image(key, value, second.per_image[key]) for key, value in first.per_image.items()]
    return Comparison(a, b, images, _route_warnings(a, b),
                      [f"{note} ({a['data']})", *first.truth_notes])


def read_saved(path: Path) -> dict[str, Any]:
    """A score that `more evaluate --save` wrote.

    Raises:
        UserError: no such file, or not a score.
    """
    remedy = "give a set of seeds or masks, or a file that `more evaluate --save` wrote"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder", remedy) from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})", remedy) from error
    whole = isinstance(saved, dict) and isinstance(saved.get("classes"), dict)
    if not whole or not {"miou", "images", "data", "route"} <= set(saved):
        raise UserError(f"{path}: is not a score", remedy)
    return {**saved, "name": saved.get("name") or path.stem}


def _with_saved(a: dict[str, Any], b: dict[str, Any], path: Path) -> Comparison:
    """A fresh result against a saved one, whose images cannot be scored again."""
    _check_same_data(a, b, path)
    warnings, notes = _route_warnings(a, b), []
    if a["images"] != b["images"]:
        warnings.append(f"A was scored on {a['images']} images, B on {b['images']}: part of the "
                        "difference may come from that")
    elif b.get("images_digest") not in (None, a["images_digest"]):
        warnings.append(f"both were scored on {a['images']} images, but not on the same ones")
    else:
        known = "the same" if "images_digest" in b else "as many"
        notes.append(f"both scored on {known} {a['images']} images of {a['data']}")
    wide, saved = a.get("boundary_width"), b.get("boundary_width")
    if wide and saved and wide != saved:
        warnings.append(f"boundary IoU left out: its band is {wide:g} of the diagonal in A, "
                        f"{saved:g} in B")
        b = _without_boundary(b)
    elif wide and not saved:
        notes.append("B was saved without boundary IoU")
    notes.append("single images of a saved score are not known: give the set itself to see "
                 "which changed")
    return Comparison(a, b, [], warnings, notes)


def _check_same_data(a: dict[str, Any], b: dict[str, Any], path: Path) -> None:
    remedy = f"score both with the same --data ({a['data']})"
    if list(a["classes"]) != list(b["classes"]):
        raise UserError(f"{path}: has other classes than {a['data']}", remedy)
    if "data_digest" not in b:
        if a["data"] != b["data"]:
            raise UserError(f"{path}: was scored on {b['data']}, not on {a['data']}", remedy)
    elif a["data_digest"] != b["data_digest"]:
        other = "another version of it" if a["data"] == b["data"] else b["data"]
        raise UserError(f"{path}: was scored on {other}, not on this {a['data']}", remedy)


def _without_boundary(record: dict[str, Any]) -> dict[str, Any]:
    classes = {name: {key: value for key, value in row.items() if key != "boundary_iou"}
               for name, row in record["classes"].items()}
    return {key: value for key, value in record.items()
            if key not in ("boundary_iou", "boundary_width")} | {"classes": classes}


def _route_warnings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    one, other = route_letter(a["route"]), route_letter(b["route"])
    if one is None or other is None:
        which = [side for side, letter in (("A", one), ("B", other)) if letter is None]
        return [f"the inference route of {' and '.join(which)} is unknown: routes a, b and c "
                "must not be compared with each other"]
    if one != other:
        return [f"inference routes differ (A: {one}, B: {other}): these figures must not be "
                "compared with each other"]
    return []


def _shared(path: Path, against: Path) -> tuple[frozenset[str], str]:
    """Ids that both sets hold, and a line about how many those are."""
    held = [set(ShardSet(one).ids) for one in (path, against)]
    ids = held[0] & held[1]
    if not ids:
        raise UserError(f"{path} and {against} have no image in common",
                        fix="compare two sets made from the same image set")
    others = [f"; {side} holds {len(names) - len(ids)} others"
              for side, names in zip("AB", held, strict=True) if len(names) > len(ids)]
    return frozenset(ids), f"scored on the {len(ids)} images that both hold{''.join(others)}"


def _both(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"a": a, "b": b, "difference": None if a is None or b is None else a - b}


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
    for side, record in (("A", found.a), ("B", found.b)):
        note = dominance_note(record["classes"])
        below += [f"{side}: {note}"] if note else []
    for title, images in (("A better", found.better()), ("A worse", found.worse())):
        if found.images:
            below.append(f"{title}: {len(images)} images{_most(images[:listed])}")
    return Group(*map(Text, lines), table, *map(Text, below),
                 *map(Text, route_lines([found.a["route"], found.b["route"]])),
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
