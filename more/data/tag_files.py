"""Files of image tags: csv with a column of tags or one column a class, JSON, JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from more.data.tags import TagLine, read_text, special_name, tidy
from more.errors import UserError, need_path

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
# As tools and data sets write them, those that tell an image's file first.
ID_NAMES = ("filename", "file_name", "file", "image", "image_name", "image_path", "path",
            "file_path", "filepath", "img", "image_id", "imageid", "id", "name", "picture")
TAG_NAMES = ("tags", "tag", "labels", "label", "classes", "class", "categories", "category",
             "class_name", "choices", "choice")
_BOX = {"xmin", "x_min", "bbox", "bbox_x", "box", "x1", "left"}
_ONE = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}
_HEADER = "first line id,tags, or a column id and one column of 0 and 1 for each class"


def read_tag_file(path: Path) -> tuple[dict[str, TagLine], str]:
    """Read a file of image tags.

    Args:
        path: JSON or JSON lines by its ending, else csv with commas, semicolons or tabs.

    Returns:
        The lines by what they call the image, and a text for the user about what was found.

    Raises:
        UserError: no such file, no known columns, an image twice, a line of another form.
    """
    need_path(path, "give a csv or json file with the tags by id")
    if path.suffix.lower() in JSON_ENDINGS:
        return _unique(_read_json(path)), ""
    return _read_csv(path)


def _unique(lines: Iterator[tuple[str, TagLine]]) -> dict[str, TagLine]:
    found: dict[str, TagLine] = {}
    for name, line in lines:
        if name in found:
            raise UserError(f"{line.where}: id {name!r} comes twice", fix="remove one")
        found[name] = line
    return found


def _read_csv(path: Path) -> tuple[dict[str, TagLine], str]:
    text = read_text(path)
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # the first of them where none is there
    # A blank after the sign belongs to nothing: `id, tags`, `filename, cat, dog`.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [tidy(cell) for cell in next(reader, [])]
        columns = {name.casefold().replace(" ", "_"): number
                   for number, name in reversed(list(enumerate(header)))}
        ids = ("id", *ID_NAMES) if "tags" in columns else ID_NAMES
        key = next((columns[name] for name in ids if name in columns), None)
        tags = next((columns[name] for name in TAG_NAMES if name in columns), None)
        if key is None or len(header) < 2:
            raise UserError(f"{path}: its first line {first.strip()[:80]!r} names no "
                            f"column of images ({', '.join(ID_NAMES[:4])}, id, …)",
                            fix=f"write as the {_HEADER}")
        rows = _rows(reader, path, len(header))
        if tags is not None:
            said = f"columns {header[key]} and {header[tags]}"
            if _BOX & columns.keys():
                return _objects((row[key], where, tidy(row[tags])) for where, row in rows), \
                    f"{said}, a line for each object"
            return _unique((row[key], TagLine(where, cell=tidy(row[tags])))
                           for where, row in rows), said
        return _read_columns(path, header, key, rows)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not a csv ({error})",
                        fix=f"save it as plain csv, {_HEADER}") from error


def _objects(rows: Iterator[tuple[str, str, str]]) -> dict[str, TagLine]:
    """Lines of objects with boxes, one name in each: the tags of an image are all its names."""
    found: dict[str, TagLine] = {}
    for name, where, tag in rows:
        before = found.setdefault(name, TagLine(where))
        if tag and tag not in before.names:
            found[name] = TagLine(before.where, (*before.names, tag))
    return found


def _rows(reader: Any, path: Path, cells: int) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of the lines that are not empty, each as long as the header."""
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path} line {reader.line_num}"
        if any(cell.strip() for cell in row[cells:]):  # `a,cat,dog`: the dog would be lost
            raise UserError(f"{where}: more cells than the header has",
                            fix='put the tags of an image into one cell: a,"cat,dog" or a,cat dog')
        yield where, [cell.strip() for cell in (row + [""] * cells)[:cells]]


def _read_columns(path: Path, header: Sequence[str], key: int,
                  rows: Iterator[tuple[str, list[str]]]) -> tuple[dict[str, TagLine], str]:
    """One column a class, with 0 and 1."""
    classes = [number for number, name in enumerate(header) if number != key and name]

    def line(where: str, row: list[str]) -> TagLine:
        """The tags of a row."""
        for number in classes:
            if row[number].casefold() not in _ONE:
                raise UserError(f"{where}: no column of tags, and {header[number]} is "
                                f"{row[number]!r}, neither 0 nor 1", fix=f"write as the {_HEADER}")
        return TagLine(where, tuple(
            header[number] for number in classes
            if _ONE[row[number].casefold()] and special_name(header[number]) is None))
    lines = _unique((row[key], line(where, row)) for where, row in rows)
    left_out = [header[number] for number in classes if special_name(header[number])]
    said = f"column {header[key]}, and {len(classes) - len(left_out)} columns of classes"
    return lines, said + (f" ({', '.join(left_out)} is none)" if left_out else "")


class _Pairs(list):
    """The pairs of a JSON object, in order: a dictionary would keep only the last of two equal."""


def _read_json(path: Path) -> Iterator[tuple[str, TagLine]]:
    """`{"id": ["dog"]}`, `[{"id": "id", "tags": ["dog"]}]`, or such an object on each line."""
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            content = [json.loads(line, object_pairs_hook=_Pairs) for line in lines]
        except ValueError:
            content = []
        if not content:
            raise UserError(f"{path}: not JSON ({error})", fix="correct the file") from error
    if isinstance(content, _Pairs) and _is_entry(dict(content)):
        content = [content]  # JSON lines, one of them
    for name, names, where in _entries(content, path):
        if isinstance(names, str):
            yield name, TagLine(where, cell=tidy(names))
        elif isinstance(names, list) and not isinstance(names, _Pairs) \
                and all(isinstance(tag, str) for tag in names):
            yield name, TagLine(where, tuple(filter(None, map(tidy, names))))
        else:
            raise UserError(f"{where}: tags are not a list of names",
                            fix='write them as ["dog", "sofa"]; [] for none')


def _entries(content: Any, path: Path) -> Iterator[tuple[str, Any, str]]:
    """(image, tags, place) of all forms."""
    if isinstance(content, _Pairs):
        for name, names in content:
            yield name, names, f"{path} at {name!r}"
        return
    for number, entry in enumerate(content if isinstance(content, list) else [None]):
        fields = dict(entry) if isinstance(entry, _Pairs) else {}
        key, tags = _pick(fields, ID_NAMES), _pick(fields, TAG_NAMES)
        if key is None or tags is None or not isinstance(fields[key], str | int):
            raise UserError(f"{path}: entry {number} has no id and tags",
                            fix='write {"ID": ["dog"]} or [{"id": "ID", "tags": ["dog"]}]')
        yield str(fields[key]), fields[tags], f"{path} at {str(fields[key])!r}"


def _is_entry(fields: dict[str, Any]) -> bool:
    key = _pick(fields, ID_NAMES)
    return isinstance(fields.get(key), str) and _pick(fields, TAG_NAMES) is not None


def _pick(fields: dict[str, Any], names: Sequence[str]) -> str | None:
    """The key that is one of `names`, in any case."""
    known = {name.strip().casefold().replace(" ", "_"): name for name in reversed(list(fields))}
    return next((known[name] for name in names if name in known), None)
