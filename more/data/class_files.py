"""Lists of classes: found beside data, read from files, and checked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from more.data.tags import read_text, special_name, tidy
from more.errors import UserError
from more.progress import say

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
