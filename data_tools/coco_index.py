"""Annotations of a COCO file in a temporary SQLite database, which workers read by image.

The database lies in the folder of the set, under a name that the next run removes if this one is
killed. A point of a polygon takes 16 bytes, so all of train2017 about 400 MB.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.coco_categories import BACKGROUND
from data_tools.coco_json import InstancesFile, by_value, check_key, need
from data_tools.coco_regions import count_pixelless, is_crowd, pack
from more.data.shards.format import IGNORE, temporary_path
from more.errors import UserError

_TABLE = ("CREATE TABLE annotation "
          "(image INTEGER, name TEXT, label INTEGER, crowd INTEGER, kind INTEGER, "
          "lengths BLOB, data BLOB)")
_reader: tuple[Path, sqlite3.Connection] | None = None  # one a process, opened when needed


class Stored(NamedTuple):
    """One annotation in the database.

    Attributes:
        name: its id.
        label: class 1..C.
        crowd: whether it is a crowd region.
        kind: POLYGONS, COMPRESSED or UNCOMPRESSED.
        lengths: of POLYGONS how many numbers each has (int32); of run lengths height and width.
        data: of POLYGONS their numbers (float64); of run lengths the counts, as text, or as uint32
            if UNCOMPRESSED.
    """

    name: str
    label: int
    crowd: bool
    kind: int
    lengths: bytes
    data: bytes


@dataclass
class Counts:
    """Counts over the annotations; see `data_tools.coco.REPORT` for those without a comment."""

    annotations: int = 0
    crowd_regions: int = 0
    background: int = 0
    ignored: int = 0
    empty_segmentations: int = 0
    small_polygons: int = 0
    odd_polygons: int = 0
    flat_lists: int = 0
    no_pixel: int = 0
    unknown_category: int = 0
    other_types: int = 0
    unlisted_images: int = 0
    other_images: int = 0
    regions: int = 0  # annotations with something to draw
    owned: dict[int, int] = field(default_factory=dict)  # annotations of the file by class
    strange_id: Any = None  # of an image that the file does not list
    examples: list[str] = field(default_factory=list)  # first annotations of unknown category


@dataclass(frozen=True)
class Options:
    """What to make of the annotations.

    Attributes:
        database: file to make; None keeps tags and counts only.
        draw_crowds: crowd regions are drawn like instances.
        sizes: height and width of each image, to find regions that draw no pixel.
    """

    database: Path | None
    draw_crowds: bool = False
    sizes: Sequence[tuple[int, int]] = ()

    @property
    def masks(self) -> bool:
        """Whether masks will be drawn."""
        return self.database is not None


@contextmanager
def annotation_database(out: Path) -> Iterator[Path]:
    """A place for the database of a set; the file is removed at the end, also after an error.

    Use it inside `sole_writer`, which removes the databases of killed runs.

    Args:
        out: folder of the set.

    Yields:
        Path of the database, not made yet.
    """
    path = temporary_path(out / "annotations.sqlite")
    try:
        yield path
    finally:
        close_reader()
        path.unlink(missing_ok=True)


def index_annotations(source: InstancesFile, options: Options, images: Mapping[Any, int],
                      listed: Set[Any], labels: Mapping[Any, int]) -> tuple[Counts, list[set[int]]]:
    """Read all annotations; keep those of `images`.

    Args:
        source: the file, of which the images are read.
        options: what to make of them.
        images: image id → number of the image in the set, from 0.
        listed: all image ids of the file.
        labels: category id → class 1..C, BACKGROUND or IGNORE.

    Returns:
        The counts, and per image the classes (1..C) that its annotations name.

    Raises:
        UserError: not valid JSON, an annotation lacks something, no space for the database.
    """
    counts, tags, empty = Counts(), [set() for _ in images], [0]
    rows = _rows(source, images, listed, labels, counts, tags, options)
    if options.database is None:
        deque(rows, maxlen=0)
        return counts, tags
    with _connected(options.database) as connection:
        # Nobody reads a half-made database, so nothing guards against a crash; sorting for the
        # index stays in memory, since the folder for temporary files may be small.
        for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(_TABLE)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO annotation VALUES (?, ?, ?, ?, ?, ?, ?)",
                               count_pixelless(rows, options.sizes, empty))
        connection.execute("CREATE INDEX by_image ON annotation (image)")
        connection.execute("COMMIT")
    counts.no_pixel = empty[0]
    return counts, tags


def renumber(database: Path, labels: Mapping[int, int]) -> None:
    """Give the annotations other classes.

    Args:
        database: made by `index_annotations`.
        labels: new class by old class.

    Raises:
        UserError: no space for the database.
    """
    with _connected(database) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("CREATE TEMP TABLE renumbered (old INTEGER PRIMARY KEY, new INTEGER)")
        connection.executemany("INSERT INTO renumbered VALUES (?, ?)", labels.items())
        connection.execute("UPDATE annotation SET label = "
                           "(SELECT new FROM renumbered WHERE old = label)")


@contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise UserError(f"{database}: {error}", fix="free some space there, or write the set "
                        "elsewhere; then run the same command again") from error


def _rows(source: InstancesFile, images: Mapping[Any, int], listed: Set[Any],
          labels: Mapping[Any, int], counts: Counts, tags: list[set[int]],
          options: Options) -> Iterator[tuple[Any, ...]]:
    """Make the rows of the table; fills `counts` and `tags` at the same time."""
    for where, item in source.items("annotations"):
        need(item, ("image_id", "category_id"), where)
        image, category = item["image_id"], item["category_id"]
        check_key(image, "image_id", where)
        check_key(category, "category_id", where)
        if type(image) not in source.id_types:
            counts.other_types += 1
        image = by_value(image)
        label = labels.get(by_value(category))
        if label is not None:
            counts.owned[label] = counts.owned.get(label, 0) + 1
        number = images.get(image)
        if number is None:
            counts.other_images += image in listed
            if image not in listed:
                counts.unlisted_images += 1
                counts.strange_id = item["image_id"]
            continue
        if label is None:
            counts.unknown_category += 1
            if len(counts.examples) < 5:
                counts.examples.append(f"annotation {item.get('id', '?')} (category {category})")
            continue
        if (row := _region(item, number, label, where, counts, tags, options)) is not None:
            yield row


def _region(item: dict[str, Any], number: int, label: int, where: str, counts: Counts,
            tags: list[set[int]], options: Options) -> tuple[Any, ...] | None:
    """The row of one annotation, or None without a region; adds its tag to `tags`."""
    counts.annotations += 1
    if label == BACKGROUND:
        counts.background += 1
        return None
    crowd = is_crowd(item.get("iscrowd"), where)
    counts.crowd_regions += crowd
    if label == IGNORE:
        counts.ignored += 1
    else:
        tags[number].add(label)
    if not options.masks:
        return None
    region = pack(item.get("segmentation"), where)
    counts.small_polygons += region.small
    counts.odd_polygons += region.odd
    counts.flat_lists += region.flat
    if region.kind:
        counts.regions += 1
        hidden = label == IGNORE or (crowd and not options.draw_crowds)
        return (number, str(item.get("id", "?")), label, hidden, region.kind, region.lengths,
                region.data)
    counts.empty_segmentations += not region.small and not region.odd
    return None


def stored_annotations(database: Path, image: int) -> list[Stored]:
    """The annotations of one image that have an area.

    Args:
        database: made by `index_annotations`.
        image: number of the image in the set.

    Returns:
        Annotations in the order of the file.
    """
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
