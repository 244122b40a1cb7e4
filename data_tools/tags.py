"""Class lists and image tags from text files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from more.errors import UserError, nearest


def read_text(path: Path) -> str:
    """Content of a text file in UTF-8, with or without the mark that some editors put first.

    Raises:
        UserError: another encoding, or not a text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})",
                        fix="save it as plain text in UTF-8") from error


def read_classes(root: Path, given: Path | None, default: Sequence[str]) -> list[str]:
    """Foreground classes in order: from a file, `classes.txt` of the root, or `default`.

    One name a line; a first line `background` is not a class.

    Raises:
        UserError: no such file, no class, a name twice, or background not first.
    """
    path = given or root / "classes.txt"
    if not path.is_file():
        if given is not None:
            raise UserError(f"{given}: no such file", fix="give a text file, one class a line")
        return list(default)
    names = [line.strip() for line in read_text(path).splitlines()]
    names = [name for name in names if name]
    names = names[1:] if names[:1] == ["background"] else names
    if not names or len(set(names)) < len(names) or "background" in names or len(names) > 254:
        raise UserError(f"{path}: {len(names)} class names, which must be 1 to 254 different ones "
                        "with background first or absent", fix="one class a line")
    if any(any(char.isspace() for char in name) for name in names):
        raise UserError(f"{path}: a class name holds a blank", fix="write it with an underscore")
    return names


def class_indices(names: Sequence[str], class_names: Sequence[str], where: str) -> tuple[int, ...]:
    """Names → sorted 0-based indices. Raises UserError for a name that is no class."""
    for name in names:
        if name not in class_names:
            close = nearest(name, class_names)
            raise UserError(f"{where}: unknown class {name!r}",
                            fix=f"{f'did you mean {close}? ' if close else ''}known: "
                                f"{', '.join(class_names[:25])}")
    return tuple(sorted({class_names.index(name) for name in names}))


def tags_from_csv(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`id,tags` lines, tags separated by blanks → class indices by id.

    Raises:
        UserError: no such file, another header, an id twice, an unknown class.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix="give a csv file with the header id,tags")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"id", "tags"} <= set(reader.fieldnames or ()):
        raise UserError(f"{path}: first line is not id,tags", fix="add the header id,tags")
    tags: dict[str, tuple[int, ...]] = {}
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if row["id"] in tags:
            raise UserError(f"{where}: id {row['id']!r} comes twice", fix="remove one")
        tags[row["id"]] = class_indices((row["tags"] or "").split(), class_names, where)
    return tags
