"""Lists of classes: read from files, collected from tags, and checked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from more.data.tag_files import JSON_ENDINGS, read_tag_file
from more.data.tags import (
    TagLine,
    class_indices,
    read_text,
    special_name,
    split_cells,
    tidy,
)
from more.errors import UserError
from more.progress import say

TAG_ENDINGS = (".csv", *JSON_ENDINGS)
CLASS_FILES = ("classes.txt", "class_names.txt")
MOST_CLASSES = 254  # 255 means "ignore" in a mask


def read_classes(root: Path, given: Path | None, default: Sequence[str]) -> list[str]:
    """Read the foreground classes, one name a line.

    First lines that name background or what is ignored, as many tools write them (`__ignore__`,
    `_background_`), are no classes, and that is printed.

    Args:
        root: folder that may hold `classes.txt`.
        given: file to take in place of it.
        default: the classes if there is no file.

    Returns:
        The classes in order.

    Raises:
        UserError: no such file, no class, a name twice, or background not first.
    """
    path = class_file(root, given)
    if not path.is_file():
        if given is not None:
            raise UserError(f"{path}: no such file", fix="give a text file, one class a line")
        return list(default)
    names = [tidy(line) for line in read_text(path).splitlines() if line.strip()]
    first = _first_class(names)
    if first:
        say(f"{path}: {' and '.join(names[:first])}: no class, numbers in masks begin "
            "with 1 after it")
    check_classes(names[first:], str(path))
    return names[first:]


def class_file(root: Path, given: Path | None) -> Path:
    """The file of classes: the given one, else one of a usual name in the root, be it missing."""
    return given or next((root / name for name in CLASS_FILES if (root / name).is_file()),
                         root / CLASS_FILES[0])


def _first_class(names: Sequence[str]) -> int:
    """How many first lines are no classes: one for ignored pixels, then one for background."""
    kinds = [special_name(name) for name in names[:2]]
    if kinds[:1] == ["ignore"] and kinds[1:] == ["background"]:
        return 2
    return int(bool(kinds) and kinds[0] is not None)


def check_classes(names: Sequence[str], where: str) -> None:
    """Check a list of classes.

    Args:
        names: the classes in order.
        where: what names them, for messages.

    Raises:
        UserError: none or more than 254, a name that means background or ignore, a name twice, or
            names that differ in case, blanks or underscores alone.
    """
    special = next((name for name in names if special_name(name) is not None), None)
    if special is not None:
        raise UserError(f"{where}: {special!r} is no class, but has a number in the middle of them",
                        fix="put background first; what is ignored has no number, masks have 255")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names or len(names) > MOST_CLASSES:
        wrong = f"{twice[0]!r} comes twice" if twice else f"{len(names)} class names"
        raise UserError(f"{where}: {wrong}; a set has 1 to {MOST_CLASSES} different classes",
                        fix="join or leave out classes that are the same or rare"
                        if len(names) > MOST_CLASSES else "give each class once, one a line")
    for same in alike(names):
        raise UserError(f"{where}: {' and '.join(map(repr, same))} differ in case, blanks or "
                        "underscores alone",
                        fix="write one of them everywhere; for tags --join-names does so")


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in case, blanks and underscores alone."""
    groups = defaultdict(list)
    for name in names:
        groups[tidy(name.replace("_", " ")).casefold()].append(name)
    return [group for group in groups.values() if len(group) > 1]


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
