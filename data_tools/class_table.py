"""The table of images per class that the converters print at their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.text import Text

from more.data.class_counts import class_counts, few_note, most_first
from more.data.shards.format import MANIFEST
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.progress import PlainTable, console, say


def show_sets(sets: Mapping[str, Path]) -> None:
    """Print images per class of finished sets; those that have no manifest yet are left out.

    Args:
        sets: folders of sets with the same classes, by the name that heads their column.
    """
    found = {}
    for name, path in sets.items():
        if (path / MANIFEST).is_file():
            try:
                opened = ShardSet(path)
            except UserError as error:  # an older manifest beside a shard that has just failed
                say(f"images per class of {name} are not known: {error.message}")
                continue
            found[name] = class_counts(opened.class_names, opened.tags)
    show_counts(found)


def show_counts(columns: Mapping[str, Mapping[str, int]]) -> None:
    """Print a table of images per class, the most frequent class first, and classes with few.

    Args:
        columns: images by class, by the name that heads the column.
    """
    tagged = {name: counts for name, counts in columns.items() if any(counts.values())}
    for name in columns.keys() - tagged.keys():
        say(f"{name}: no image has a tag")
    if not tagged:
        return
    table = PlainTable("class", title="images per class", title_justify="left")
    for name in tagged:
        table.add_column(name, justify="right")
    for name in most_first(_totals(tagged.values())):
        table.add_row(name, *(str(counts.get(name, 0)) for counts in tagged.values()))
    console.print(table)
    for name, counts in tagged.items():
        note = few_note(counts)
        if note:
            console.print(Text(f"warning: {name}: {note}", style="yellow"))


def _totals(columns: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums over the columns, in the order of the first one's classes."""
    total: dict[str, int] = {}
    for counts in columns:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total
