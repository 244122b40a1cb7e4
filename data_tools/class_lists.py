"""Classes that tags name: collected, joined where spelled alike, and looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from more.data.class_files import alike, check_classes
from more.data.tag_files import JSON_ENDINGS, read_tag_file
from more.data.tags import TagLine, class_indices, special_name, split_cells
from more.progress import say

TAG_ENDINGS = (".csv", *JSON_ENDINGS)


def join_alike(lines: Mapping[str, TagLine], class_names: Sequence[str] = ()) -> dict[str, TagLine]:
    """Write names that differ in case, blanks or underscores alone in one way.

    It is that of the class list, else that of most lines. What was joined is printed.

    Args:
        lines: by what the file calls the image, with names split.
        class_names: the class list, if there is one.

    Returns:
        The changed lines.
    """
    counts = Counter(name for line in lines.values() for name in set(line.names))
    known, spelling = set(class_names), {}
    for group in alike({**counts, **dict.fromkeys(class_names, 0)}):
        kept = max(group, key=lambda name: (name in known, counts[name], name))
        others = [name for name in group if name != kept and name in counts]
        spelling.update(dict.fromkeys(others, kept))
        if others:
            say(f"joined with {kept} ({counts[kept]} images): "
                f"{', '.join(f'{name} ({counts[name]})' for name in others)}")
    return {key: replace(line, names=tuple(dict.fromkeys(spelling.get(name, name)
                                                         for name in line.names)))
            for key, line in lines.items()}


def names_in(lines: Mapping[str, TagLine], where: str) -> list[str]:
    """Collect the classes that tags name; names of background are none, and that is printed.

    Args:
        lines: with names split.
        where: the tags' file, for messages.

    Returns:
        The classes, sorted.

    Raises:
        UserError: see `check_classes`.
    """
    counts = Counter(name for line in lines.values() for name in line.names)
    special = sorted(name for name in counts if special_name(name) is not None)
    if special:
        say(f"{where}: no class: "
            f"{', '.join(f'{name} ({counts[name]} images)' for name in special)}")
    names = sorted(counts.keys() - set(special))
    check_classes(names, f"the tags of {where}")
    return names


def tags_from_file(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read a tags file of known classes.

    Args:
        path: the file.
        class_names: all classes in order.

    Returns:
        Sorted class indices from 0 by what the file calls the image.

    Raises:
        UserError: see `read_tag_file`, `split_cells`; an unknown class.
    """
    lines, _ = split_cells(read_tag_file(path)[0], class_names)
    return {name: class_indices(line.names, class_names, line.where)
            for name, line in lines.items()}
