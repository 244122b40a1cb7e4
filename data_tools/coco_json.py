"""Reading a COCO instances file piece by piece: it is never in memory as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ijson

from data_tools.coco_names import CocoImage, clean_name, name_images
from data_tools.coco_stream import Counted, PlainNumbers, Recoded, encoding_of
from more.errors import UserError, need_path
from more.progress import Tracker

# Categories stand last in the official files, and annotations can only be judged when categories
# and images are known: one reading for each of the three. ijson builds its items in C; taking
# single events into Python instead would read once, and take longer.
PASSES = 3
MAX_PIXELS = 178_956_970  # Pillow refuses to open larger images
_MB = 1_000_000
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?")
_FIX = "give a complete instances_*.json; captions, keypoints and panoptic files do not serve"


class Category(NamedTuple):
    """One category: its id in the file, its name, what it belongs to."""

    id: int | str
    name: str
    supercategory: str


def megabytes(path: Path) -> int:
    """Size of a file in MB, rounded up: what reading it once adds to the progress bar.

    Args:
        path: the file.

    Returns:
        The size.

    Raises:
        UserError: no such file.
    """
    need_path(path, "give an instances_*.json file")
    return -(-path.stat().st_size // _MB)


class InstancesFile:
    """The three lists of an instances file; each method reads the file once, start to end.

    Args:
        path: the file.
        bar: told of every MB read.

    Attributes:
        odd_numbers: NaN and Infinity in the file, once a list was read to its end.
        id_types: Python types of the ids of images, once `images` was called.
    """

    def __init__(self, path: Path, bar: Tracker):
        self.path, self.bar = path, bar
        self.encoding, self.odd_numbers, self.id_types = encoding_of(path), 0, set[type]()
        self._plain = False  # numbers have to be made plain, since ijson stopped at one

    def categories(self) -> list[Category]:
        """Read all categories.

        Returns:
            The categories, sorted by id (numbers first).

        Raises:
            UserError: not JSON, none, an id given twice, an empty name.
        """
        found: dict[int | str, Category] = {}
        for where, item in self.items("categories"):
            need(item, ("id", "name"), where)
            check_key(item["id"], "id", where)
            name, number = " ".join(str(item["name"]).split()), by_value(item["id"])
            if not name or isinstance(number, float):
                raise UserError(f"{where}: id {item['id']!r}, name {item['name']!r}",
                                fix="categories have a whole number or text as id, and a name")
            if number in found:
                raise UserError(f"{self.path}: category id {number} comes twice",
                                fix="give every category its own id")
            above = item.get("supercategory")
            found[number] = Category(number, name, " ".join(str(above or "").split()))
        return sorted(found.values(), key=lambda item: (isinstance(item.id, str), item.id))

    def images(self) -> list[CocoImage]:
        """Read all images.

        Returns:
            The images in the order of the file.

        Raises:
            UserError: none, a value lacking or impossible, an id or file name given twice.
        """
        found, ids = [], set()
        for where, item in self.items("images"):
            need(item, ("id", "file_name"), where)
            height, width = (_length(item.get(key)) for key in ("height", "width"))
            if not isinstance(height or 1, int) or not isinstance(width or 1, int) \
                    or min(1 if side is None else side for side in (height, width)) < 1 \
                    or (height or 1) * (width or 1) > MAX_PIXELS:
                raise UserError(f"{where}: height {item.get('height')!r}, width "
                                f"{item.get('width')!r}",
                                fix="give the height and width of the image in pixels, or leave "
                                "them out: then they are read from the image")
            if not clean_name(str(item["file_name"])):
                raise UserError(f"{where}: file_name {item['file_name']!r}",
                                fix="give a path inside the image folder")
            check_key(item["id"], "id", where)
            number = by_value(item["id"])
            self.id_types.add(type(item["id"]))
            if number in ids:
                raise UserError(f"{where}: image id {item['id']!r} comes twice",
                                fix="give every image its own id")
            ids.add(number)
            found.append(CocoImage(number, "", str(item["file_name"]), height, width))
        return name_images(found, self.path)

    def items(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read the objects of a list. Only `annotations` may be empty: a set of negatives.

        Args:
            name: of the list.

        Yields:
            Where an object stands, for messages, and the object.

        Raises:
            UserError: not valid JSON, no such list or an empty one, something else in it.
        """
        count, told = 0, 0
        while True:  # once more from the start, past `count` items, when a number was not plain
            with open(self.path, "rb") as file:
                if self.encoding == "utf-8-sig":
                    file.seek(3)
                counted = Counted(file, self.bar, told)
                stream = self._stream(counted)
                try:
                    for place, item in enumerate(
                            ijson.items(stream, f"{name}.item", use_float=True)):
                        if place < count:
                            continue
                        where = f"{self.path}: {name}[{count}]"
                        if not isinstance(item, dict):
                            raise UserError(f"{where}: is not an object", fix=_FIX)
                        count += 1
                        yield where, item
                    break
                except (ijson.JSONError, UnicodeDecodeError) as error:
                    if self._plain:
                        raise self._malformed(error, counted.done) from error
                    self._plain, told = True, counted.told
        self.odd_numbers = stream.odd if isinstance(stream, PlainNumbers) else 0
        if not count and not (self._has(name) and name == "annotations"):
            raise UserError(f"{self.path}: {name!r} is missing or empty", fix=_FIX)

    def _stream(self, file: Any) -> Any:
        if self.encoding not in ("utf-8", "utf-8-sig"):
            file = Recoded(file, self.encoding)
        return PlainNumbers(file) if self._plain else file

    def _malformed(self, error: Exception, done: int) -> UserError:
        why = str(error).splitlines()[0].strip()
        return UserError(f"{self.path}: not valid JSON ({why}; before byte {done})",
                         fix="fetch or make the file again")

    def _has(self, name: str) -> bool:
        """Whether the file has the list, be it empty."""
        with open(self.path, "rb") as file:
            if self.encoding == "utf-8-sig":
                file.seek(3)
            return any(prefix == name and event == "start_array"
                       for prefix, event, _ in ijson.parse(self._stream(file), use_float=True))


def by_value(value: Any) -> Any:
    """An id without its type: 1, 1.0, "1" and "1.0" are the whole number 1."""
    if isinstance(value, str):
        value = value.strip()
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else value
    return int(value) if isinstance(value, float) and value % 1 == 0 else value


def _length(value: Any) -> Any:
    """A height or width: None if it is missing; a value that is no whole number as it is."""
    return None if value is None else by_value(value) if not isinstance(value, bool) else 0


def need(item: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise UserError when one of `keys` is not in `item`."""
    lacking = [key for key in keys if key not in item]
    if lacking:
        raise UserError(f"{where}: lacks {', '.join(lacking)}", fix=_FIX)


def check_key(value: Any, key: str, where: str) -> None:
    """Raise UserError when `value` cannot be the id of something."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{where}: {key} {value!r}", fix="ids are numbers or texts")
