"""Segmentations of a COCO file: packed for the database, and counted if they draw no pixel."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from more.errors import UserError

POLYGONS, COMPRESSED, UNCOMPRESSED = 1, 2, 3  # what `Region.kind` says
_FEWEST = 6  # numbers of a polygon with an area; pycocotools takes 4 numbers for a box
_BATCH = 2048  # annotations looked at together
# pycocotools takes memory for every step along an edge and does not check how many there are.
FARTHEST = 1e6
_NO = ("", "0", "0.0", "false", "no", "none", "null")
_YES = ("1", "1.0", "true", "yes")


class Region(NamedTuple):
    """A segmentation, packed.

    Attributes:
        kind: POLYGONS, COMPRESSED or UNCOMPRESSED; 0 for no area.
        lengths: as in `data_tools.coco_index.Stored`.
        data: as in `data_tools.coco_index.Stored`.
        small: number of polygons of fewer than 3 points, which are left out.
        odd: number of polygons with NaN or Infinity, which are left out.
        flat: whether a plain list of numbers stood for a list of polygons.
    """

    kind: int
    lengths: bytes = b""
    data: bytes = b""
    small: int = 0
    odd: int = 0
    flat: bool = False


def pack(segmentation: Any, where: str) -> Region:
    """Pack a segmentation.

    Args:
        segmentation: as the file has it.
        where: it stands, for messages.

    Returns:
        The region.

    Raises:
        UserError: neither polygons nor run lengths.
    """
    try:
        if not segmentation:
            return Region(0)
        if isinstance(segmentation, list):
            return _polygons(segmentation)
        height, width = segmentation["size"]
        size, runs = array("i", (height, width)).tobytes(), segmentation["counts"]
        if not runs:
            return Region(0)
        if isinstance(runs, str):
            return Region(COMPRESSED, size, runs.encode("ascii"))
        return Region(UNCOMPRESSED, size, array("I", runs).tobytes())
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{where}: segmentation is neither polygons nor run lengths ({error!r})",
                        fix="write [[x, y, x, y, …], …], or size and counts") from error


def _polygons(segmentation: list[Any]) -> Region:
    flat = not isinstance(segmentation[0], (list, dict, str))
    polygons, odd = [], 0
    for polygon in [segmentation] if flat else segmentation:
        try:
            polygons.append(array("d", polygon))
        except TypeError:
            # NaN and Infinity come as None
            if not isinstance(polygon, list) or None not in polygon:
                raise
            array("d", [number for number in polygon if number is not None])
            odd += 1
    large = [polygon for polygon in polygons if len(polygon) >= _FEWEST]
    return Region(POLYGONS if large else 0, array("i", map(len, large)).tobytes(),
                  b"".join(polygon.tobytes() for polygon in large), len(polygons) - len(large),
                  odd, flat)


def is_crowd(value: Any, where: str) -> bool:
    """Read `iscrowd`, which may be a number, a truth value or a text.

    Args:
        value: as the file has it.
        where: it stands, for messages.

    Returns:
        Whether the region is a crowd.

    Raises:
        UserError: none of these.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _NO or text in _YES:
            return text in _YES
    elif value is None or isinstance(value, (bool, int, float)):
        return bool(value)
    raise UserError(f"{where}: iscrowd {value!r}", fix="write 0 or 1")


def count_pixelless(rows: Iterable[tuple[Any, ...]], sizes: Sequence[tuple[int, int]],
                    found: list[int]) -> Iterator[tuple[Any, ...]]:
    """Count polygons and run lengths that draw no pixel while rows of the table pass through.

    Only polygons narrower than two pixels on average, or that reach out of the image, are drawn to
    find out.

    Args:
        rows: of the table.
        sizes: height and width of each image.
        found: its first item is increased.

    Yields:
        The rows.
    """
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        drawn = [row for row in batch if row[4] == POLYGONS]
        if drawn:
            found[0] += _polygons_without_pixel(drawn, sizes)
        for _, _, _, _, kind, _, data in batch:
            if kind == UNCOMPRESSED:
                found[0] += len(data) <= array("I").itemsize
            elif kind == COMPRESSED and len(data) < 8:  # one number: all of it background
                found[0] += all((code - 48) & 32 for code in data[:-1])
        yield from batch


def _polygons_without_pixel(rows: list[tuple[Any, ...]], sizes: Sequence[tuple[int, int]]) -> int:
    lengths = [np.frombuffer(row[5], np.int32) for row in rows]
    images = np.repeat([row[0] for row in rows], [len(item) for item in lengths])
    lengths = np.concatenate(lengths)
    if (lengths % 2).any():
        return 0  # refused when it is drawn
    numbers = np.frombuffer(b"".join(row[6] for row in rows), np.float64)
    ends = np.cumsum(lengths // 2)
    starts, x, y = ends - lengths // 2, numbers[::2], numbers[1::2]
    after = np.arange(1, len(x) + 1)
    after[ends - 1] = starts
    with np.errstate(all="ignore"):  # what is not finite is refused when it is drawn
        area = np.abs(np.add.reduceat(x * y[after] - x[after] * y, starts)) / 2
        left, right = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
        top, bottom = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        height, width = np.array(sizes)[images].T
        doubtful = ((area < 2 * np.maximum(right - left, bottom - top)) | (left < 0) | (top < 0)
                    | (right > width) | (bottom > height))
    count = 0
    for k in np.flatnonzero(doubtful).tolist():
        polygon = numbers[2 * starts[k]:2 * ends[k]]
        if np.abs(polygon).max() <= FARTHEST:
            runs = coco_mask.frPyObjects([polygon], int(height[k]), int(width[k]))
            count += int(coco_mask.area(runs[0])) == 0
    return count
