"""Which categories of a COCO file become which classes of the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.coco_json import Category
from more.data.class_files import MOST_CLASSES
from more.data.shards.format import IGNORE
from more.data.tags import special_name
from more.errors import UserError, first_few

BACKGROUND = 0


@dataclass
class Classes:
    """Which category is which class; see `first_classes` and `final_classes`.

    Attributes:
        kept: one category for each class, in order: class 1 is the first.
        labels: category id → class 1..C, BACKGROUND or IGNORE.
        joined: categories that share the class of an earlier one.
        left_out: categories that are no class, with the reason.
        notes: sentences for the user about classes that look odd.
    """

    kept: list[Category]
    labels: dict[Any, int]
    joined: list[Category] = field(default_factory=list)
    left_out: list[tuple[Category, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def extra(self) -> dict[str, Any]:
        """What the manifest keeps: a category for each class, and what became of the others."""
        rows = []
        for index, category in enumerate(self.kept, 1):
            also = [other.id for other in self.joined if self.labels[other.id] == index]
            rows.append({"index": index, **category._asdict(),
                         **({"joined_ids": also} if also else {})})
        others = [{**category._asdict(), "why": why} for category, why in self.left_out]
        return {"categories": rows, **({"categories_left_out": others} if others else {})}


def first_classes(categories: Sequence[Category], join_alike: bool = False) -> Classes:
    """Classes by the names alone, before the annotations are read.

    Categories of one name are one class; names of background and of ignored regions are none.

    Args:
        categories: in order.
        join_alike: join names that differ in case, blanks and underscores only.

    Returns:
        The classes so far.
    """
    made, places = Classes([], {}), {}
    for category in categories:
        special = special_name(category.name)
        if special:
            made.labels[category.id] = BACKGROUND if special == "background" else IGNORE
            made.left_out.append((category, f"means {special}"))
            continue
        key = _alike(category.name) if join_alike else category.name
        if key in places:
            made.joined.append(category)
        else:
            made.kept.append(category)
            places[key] = len(made.kept)
        made.labels[category.id] = places[key]
    return made


def final_classes(first: Classes, owned: Mapping[int, int], where: Path,
                  drop_unused: bool = False) -> tuple[Classes, dict[int, int]]:
    """Classes once the annotations are known.

    A category without annotations that is the supercategory of others (Roboflow writes one first)
    is no class. Other categories stay, also without annotations, so that two files of one data set
    give the same numbers; `drop_unused` leaves them out.

    Args:
        first: from `first_classes`.
        owned: annotations of the whole file by class of `first`.
        where: the file, for messages.
        drop_unused: leave out classes without annotations.

    Returns:
        The classes, and for each class of `first` that stays its number now.

    Raises:
        UserError: no class is left, or more than 254.
    """
    above = {category.supercategory for category in first.kept
             if category.supercategory != category.name}
    renumbered: dict[int, int] = {}
    kept, left_out, unused = [], list(first.left_out), []
    for label, category in enumerate(first.kept, 1):
        root = category.name in above
        if not owned.get(label) and (root or drop_unused):
            left_out.append((category, "supercategory of others, without annotation" if root
                             else "without annotation (--drop-unused)"))
            continue
        kept.append(category)
        renumbered[label] = len(kept)
        if not owned.get(label):
            unused.append(category.name)
    if not 1 <= len(kept) <= MOST_CLASSES:
        raise UserError(f"{where}: {len(kept)} categories",
                        fix="keep at least one" if not kept else f"keep at most {MOST_CLASSES}; "
                        "--drop-unused leaves out those without annotation")
    renumbered = {BACKGROUND: BACKGROUND, IGNORE: IGNORE, **renumbered}
    labels = {key: renumbered[label] for key, label in first.labels.items() if label in renumbered}
    joined = [category for category in first.joined if category.id in labels]
    notes = _notes(kept, unused, first, owned, above)
    return Classes(kept, labels, joined, left_out, notes), renumbered


def _notes(kept: list[Category], unused: list[str], first: Classes, owned: Mapping[int, int],
           above: set[str]) -> list[str]:
    notes = []
    if unused:
        notes.append(f"{len(unused)} classes without an annotation stay classes: "
                     f"{first_few(unused, 20)} (--drop-unused leaves them out)")
    groups: dict[str, list[str]] = {}
    for category in kept:
        groups.setdefault(_alike(category.name), []).append(category.name)
    for names in groups.values():
        if len(names) > 1:
            notes.append(f"{' and '.join(map(repr, names))} differ in case, blanks or underscores "
                         "only and are separate classes (--join-names joins them)")
    roots = [category.name for label, category in enumerate(first.kept, 1)
             if category.name in above and owned.get(label)]
    if roots:
        notes.append(f"supercategories with annotations of their own stay classes: "
                     f"{first_few(roots, 20)}")
    return notes


def _alike(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()
