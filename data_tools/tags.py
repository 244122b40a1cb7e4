"""Class lists and image tags from text files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from more.data.tags import TagLine, class_indices, read_csv, read_text
from more.errors import UserError

TAG_ENDINGS = (".csv", ".json")


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
    check_classes(names, str(path))
    return names


def check_classes(names: Sequence[str], where: str) -> None:
    """Raise UserError unless these are 1 to 254 different class names without blanks."""
    if not names or len(set(names)) < len(names) or "background" in names or len(names) > 254:
        raise UserError(f"{where}: {len(names)} class names, which must be 1 to 254 different "
                        "ones with background first or absent", fix="one class a line")
    if any(any(char.isspace() for char in name) for name in names):
        raise UserError(f"{where}: a class name holds a blank", fix="write it with an underscore")


def tags_from_csv(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`id,tags` lines, tags separated by blanks → class indices by id.

    Raises:
        UserError: no such file, another header, an id twice, an unknown class.
    """
    return {name: class_indices(line.names, class_names, line.where)
            for name, line in read_csv(path).items()}


def read_tags(path: Path) -> dict[str, TagLine]:
    """The lines of a tags file by the name that it gives the image; `.json`, else csv.

    Raises:
        UserError: see `read_csv` and `read_json`.
    """
    return read_json(path) if path.suffix.lower() == ".json" else read_csv(path)


def read_json(path: Path) -> dict[str, TagLine]:
    """`{"id": ["dog", "sofa"]}` or `[{"id": "id", "tags": ["dog"]}]`; blanks → underscores.

    Raises:
        UserError: no such file, not JSON, neither of the two forms, an id twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix="give a json file with the tags by id")
    try:  # as pairs: a dictionary would keep only the last of two equal ids
        content = json.loads(read_text(path), object_pairs_hook=_Pairs)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})", fix="correct the file") from error
    lines: dict[str, TagLine] = {}
    for name, names in _json_pairs(content, path):
        where = f"{path} at {name!r}"
        if not isinstance(names, list) or not all(isinstance(tag, str) for tag in names):
            raise UserError(f"{where}: tags are not a list of names",
                            fix='write them as ["dog", "sofa"]; [] for none')
        if name in lines:
            raise UserError(f"{where}: id {name!r} comes twice", fix="remove one")
        lines[name] = TagLine(where, ["_".join(tag.split()) for tag in names if tag.strip()])
    return lines


class _Pairs(list):
    """The pairs of a JSON object, in order."""


def _json_pairs(content: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(id, tags) of both forms."""
    if isinstance(content, _Pairs):
        yield from content
        return
    for number, entry in enumerate(content if isinstance(content, list) else [None]):
        fields = dict(entry) if isinstance(entry, _Pairs) else {}
        if not isinstance(fields.get("id"), str) or "tags" not in fields:
            raise UserError(f"{path}: entry {number} has no id and tags",
                            fix='write {"ID": ["dog"]} or [{"id": "ID", "tags": ["dog"]}]')
        yield fields["id"], fields["tags"]
