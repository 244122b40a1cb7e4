"""A COCO instances file, read piece by piece: the whole is never in memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import ijson

from more.errors import UserError
from more.progress import Tracker

# Categories stand last in the official files, and annotations can only be judged when categories
# and images are known: one reading for each of the three. ijson builds its items in C; taking
# single events into Python instead would read once, and take longer.
PASSES = 3
MAX_CLASSES = 254  # 255 is "ignore" in a mask
MAX_PIXELS = 178_956_970  # Pillow refuses to open larger images
_MB = 1_000_000
_FIX = "give a complete instances_*.json; captions, keypoints and panoptic files do not serve"


class Category(NamedTuple):
    """One class: its id in the file, its name with underscores for blanks, what it belongs to."""

    id: int
    name: str
    supercategory: str


class CocoImage(NamedTuple):
    """One image of the file; `name` is the stem of `file_name`."""

    id: int | str
    name: str
    file_name: str
    height: int
    width: int


def megabytes(path: Path) -> int:
    """Size of a file in MB, rounded up: what one reading of it adds to the progress bar.

    Raises:
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix="give an instances_*.json file")
    return -(-path.stat().st_size // _MB)


class InstancesFile:
    """The three lists of an instances file; each method reads the file once, start to end.

    Args:
        path: the file.
        bar: told of every MB read.
    """

    def __init__(self, path: Path, bar: Tracker):
        self.path, self.bar = path, bar

    def categories(self) -> list[Category]:
        """All categories, by id; class index 1 is the first.

        Raises:
            UserError: not JSON, none, too many, ids or names given twice, unusable names.
        """
        found = []
        for where, item in self.items("categories"):
            need(item, ("id", "name"), where)
            name = "_".join(str(item["name"]).split())  # tags are separated by blanks
            if not _is_whole(item["id"]) or name in ("", "background"):
                raise UserError(f"{where}: id {item['id']!r}, name {item['name']!r}",
                                fix="categories have a whole number and a name, not background")
            found.append(Category(int(item["id"]), name, str(item.get("supercategory") or "")))
        if len(found) > MAX_CLASSES:
            raise UserError(f"{self.path}: {len(found)} categories",
                            fix=f"leave at most {MAX_CLASSES} of them")
        for what, values in (("id", [c.id for c in found]), ("name", [c.name for c in found])):
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            if twice:
                raise UserError(f"{self.path}: category {what} {', '.join(twice[:5])} comes twice",
                                fix=f"give every category its own {what}")
        return sorted(found)

    def images(self) -> list[CocoImage]:
        """All images in the order of the file.

        Raises:
            UserError: none, a value lacking or impossible, ids or names given twice.
        """
        found, ids, names = [], set(), set()
        for where, item in self.items("images"):
            need(item, ("id", "file_name", "height", "width"), where)
            height, width, file_name = item["height"], item["width"], item["file_name"]
            if not _is_whole(height) or not _is_whole(width) or min(height, width) < 1 \
                    or height * width > MAX_PIXELS:
                raise UserError(f"{where}: height {height!r}, width {width!r}",
                                fix="give the height and width of the image in pixels")
            path = PurePosixPath(str(file_name))
            if not path.name or path.is_absolute() or ".." in path.parts:
                raise UserError(f"{where}: file_name {file_name!r}",
                                fix="give a path inside the image folder")
            check_key(item["id"], "id", where)
            if item["id"] in ids or path.stem in names:
                what = f"id {item['id']!r}" if item["id"] in ids else f"name {path.stem}"
                raise UserError(f"{where}: image {what} comes twice",
                                fix="give every image its own id and file name")
            ids.add(item["id"])
            names.add(path.stem)
            found.append(CocoImage(item["id"], path.stem, str(path), int(height), int(width)))
        return found

    def items(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of the list `name`, each with where it stands, for messages.

        Raises:
            UserError: not valid JSON, no such list or an empty one, something else in it.
        """
        count = 0
        with open(self.path, "rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            counted = _Counted(file, self.bar)
            try:
                for item in ijson.items(counted, f"{name}.item", use_float=True):
                    where = f"{self.path}: {name}[{count}]"
                    if not isinstance(item, dict):
                        raise UserError(f"{where}: is not an object", fix=_FIX)
                    yield where, item
                    count += 1
            except (ijson.JSONError, UnicodeDecodeError) as error:
                why = str(error).splitlines()[0].strip()
                raise UserError(f"{self.path}: not valid JSON ({why}; before byte {counted.done})",
                                fix="fetch or make the file again") from error
        if not count:
            raise UserError(f"{self.path}: {name!r} is missing or empty", fix=_FIX)


class _Counted:
    """A file that tells the bar of every MB read."""

    def __init__(self, file: BinaryIO, bar: Tracker):
        self.file, self.bar, self.done, self.told = file, bar, file.tell(), 0

    def read(self, size: int = -1) -> bytes:
        """As the file's own; a started MB counts as read."""
        data = self.file.read(size)
        self.done += len(data)
        if (now := -(-self.done // _MB)) > self.told:
            self.bar.advance(now - self.told)
            self.told = now
        return data


def need(item: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise UserError when one of `keys` is not in `item`."""
    lacking = [key for key in keys if key not in item]
    if lacking:
        raise UserError(f"{where}: lacks {', '.join(lacking)}", fix=_FIX)


def check_key(value: Any, key: str, where: str) -> None:
    """Raise UserError when `value` cannot be the id of something."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{where}: {key} {value!r}", fix="ids are numbers or texts")


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
