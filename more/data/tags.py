"""Image tags from a csv file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from more.errors import UserError, nearest


@dataclass(frozen=True)
class TagLine:
    """Class names of one image as a file gives them, and where it does (for messages)."""

    where: str
    names: list[str]


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


def class_indices(names: Sequence[str], class_names: Sequence[str], where: str) -> tuple[int, ...]:
    """Names → sorted 0-based indices. Raises UserError for a name that is no class."""
    for name in names:
        if name not in class_names:
            close = nearest(name, class_names)
            raise UserError(f"{where}: unknown class {name!r}",
                            fix=f"{f'did you mean {close}? ' if close else ''}known: "
                                f"{', '.join(class_names[:25])}")
    return tuple(sorted({class_names.index(name) for name in names}))


def read_csv(path: Path) -> dict[str, TagLine]:
    """`id,tags` lines with tags separated by blanks; other columns do not matter.

    Raises:
        UserError: no such file, another header, more cells than the header, an id twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix="give a csv file with the header id,tags")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if not {"id", "tags"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path}: first line is not id,tags", fix="add the header id,tags")
        lines: dict[str, TagLine] = {}
        for row in reader:
            where, name = f"{path} line {reader.line_num}", row["id"] or ""
            if any(row.get(None) or ()):  # `a,cat,dog`: the dog would be lost
                raise UserError(f"{where}: more cells than the header has",
                                fix="separate tags by blanks: id,cat dog")
            if name in lines:
                raise UserError(f"{where}: id {name!r} comes twice", fix="remove one")
            lines[name] = TagLine(where, (row["tags"] or "").split())
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not a csv ({error})",
                        fix="save it as plain csv with the header id,tags") from error
    return lines
