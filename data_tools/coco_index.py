"""Annotations of a COCO file in a temporary SQLite database, which workers read by image.

The database lies in the folder of the set, under a name that the next run removes when this one
is killed. A polygon takes 16 bytes a point there, so all of train2017 about 400 MB.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.coco_json import InstancesFile, check_key, need
from more.data.shards.format import temporary_path
from more.errors import UserError

POLYGONS, COMPRESSED, UNCOMPRESSED = 1, 2, 3  # what `Stored.kind` says
_FEWEST = 6  # numbers of a polygon with an area; pycocotools takes 4 numbers for a box
_TABLE = ("CREATE TABLE annotation "
          "(image INTEGER, name TEXT, label INTEGER, crowd INTEGER, kind INTEGER, "
          "lengths BLOB, data BLOB)")
_reader: tuple[Path, sqlite3.Connection] | None = None  # one a process, opened when needed


class Stored(NamedTuple):
    """One annotation: its id, class 1..C, crowd region or not, and its segmentation.

    For POLYGONS `lengths` counts the numbers of each (int32) and `data` holds them (float64). For
    run lengths `lengths` is height and width, `data` the counts: text, or uint32 if UNCOMPRESSED.
    """

    name: str
    label: int
    crowd: bool
    kind: int
    lengths: bytes
    data: bytes


@dataclass
class Counts:
    """What was met among the annotations; the keys of the report."""

    annotations: int = 0
    crowd_regions: int = 0
    empty_segmentations: int = 0
    small_polygons: int = 0
    unknown_category: int = 0
    unlisted_images: int = 0
    other_images: int = 0
    examples: list[str] = field(default_factory=list)  # first annotations of unknown category


@contextmanager
def annotation_database(out: Path) -> Iterator[Path]:
    """Where to make the database of the set `out`; removed at the end, however that comes.

    Take it while holding the folder (`sole_writer`), which removes those of killed runs.
    """
    path = temporary_path(out / "annotations.sqlite")
    try:
        yield path
    finally:
        close_reader()
        path.unlink(missing_ok=True)


def index_annotations(source: InstancesFile, database: Path | None, images: Mapping[Any, int],
                      listed: Set[Any], labels: Mapping[Any, int]) -> tuple[Counts, list[set[int]]]:
    """Read all annotations; keep those of `images`.

    Args:
        source: the file.
        database: file to make; None keeps tags and counts only.
        images: image id → number of the image in the set, from 0.
        listed: all image ids of the file.
        labels: category id → class 1..C.

    Returns:
        The counts, and per image the classes (1..C) that its annotations name.

    Raises:
        UserError: not valid JSON, an annotation lacks something, no space for the database.
    """
    counts, tags = Counts(), [set() for _ in images]
    rows = _rows(source, images, listed, labels, counts, tags, database is not None)
    if database is None:
        deque(rows, maxlen=0)
        return counts, tags
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            # Nobody reads a half-made database, so nothing guards against a crash; sorting for the
            # index stays in memory, since the folder for temporary files may be small.
            for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=MEMORY"):
                connection.execute(f"PRAGMA {setting}")
            connection.execute(_TABLE)
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO annotation VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("CREATE INDEX by_image ON annotation (image)")
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise UserError(f"{database}: {error}", fix="free some space there, or write the set "
                        "elsewhere; then run the same command again") from error
    return counts, tags


def _rows(source: InstancesFile, images: Mapping[Any, int], listed: Set[Any],
          labels: Mapping[Any, int], counts: Counts, tags: list[set[int]],
          masks: bool) -> Iterator[tuple[Any, ...]]:
    """Rows of the table; counts and tags are filled on the way."""
    keys = ("image_id", "category_id", *(("segmentation",) if masks else ()))
    for where, item in source.items("annotations"):
        need(item, keys, where)
        image, category = item["image_id"], item["category_id"]
        check_key(image, "image_id", where)
        check_key(category, "category_id", where)
        number = images.get(image)
        if number is None:
            counts.other_images += image in listed
            counts.unlisted_images += image not in listed
            continue
        label = labels.get(category)
        if label is None:
            counts.unknown_category += 1
            if len(counts.examples) < 5:
                counts.examples.append(f"annotation {item.get('id', '?')} (category {category})")
            continue
        crowd = bool(item.get("iscrowd"))
        counts.annotations += 1
        counts.crowd_regions += crowd
        tags[number].add(label)
        kind, lengths, data, small = pack(item.get("segmentation"), where)
        counts.small_polygons += small
        if kind:
            yield number, str(item.get("id", "?")), label, crowd, kind, lengths, data
        elif not small:
            counts.empty_segmentations += 1


def pack(segmentation: Any, where: str) -> tuple[int, bytes, bytes, int]:
    """Kind (0: no area), lengths and data as in `Stored`; polygons left out for want of area.

    Raises:
        UserError: neither polygons nor run lengths.
    """
    try:
        if not segmentation:
            return 0, b"", b"", 0
        if isinstance(segmentation, list):
            polygons = [array("d", polygon) for polygon in segmentation]
            large = [polygon for polygon in polygons if len(polygon) >= _FEWEST]
            return (POLYGONS if large else 0, array("i", map(len, large)).tobytes(),
                    b"".join(polygon.tobytes() for polygon in large), len(polygons) - len(large))
        height, width = segmentation["size"]
        size, runs = array("i", (height, width)).tobytes(), segmentation["counts"]
        if not runs:
            return 0, b"", b"", 0
        if isinstance(runs, str):
            return COMPRESSED, size, runs.encode("ascii"), 0
        return UNCOMPRESSED, size, array("I", runs).tobytes(), 0
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{where}: segmentation is neither polygons nor run lengths ({error!r})",
                        fix="write [[x, y, x, y, …], …], or size and counts") from error


def stored_annotations(database: Path, image: int) -> list[Stored]:
    """The annotations of image `image` that have an area, in the order of the file."""
    global _reader
    if _reader is None or _reader[0] != database:
        close_reader()
        # It no longer changes: no locks, which network disks may not know.
        uri = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
        _reader = database, sqlite3.connect(uri, uri=True)
    rows = _reader[1].execute("SELECT name, label, crowd, kind, lengths, data FROM annotation "
                              "WHERE image = ? ORDER BY rowid", (image,))
    return [Stored(*row) for row in rows]


def close_reader() -> None:
    """Close this process's connection; a later database may have the same name."""
    global _reader
    if _reader is not None:
        _reader[1].close()
        _reader = None
