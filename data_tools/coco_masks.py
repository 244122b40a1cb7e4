"""Drawing the semantic mask of an image from its COCO annotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data_tools.coco_index import Stored, stored_annotations
from data_tools.coco_regions import COMPRESSED, FARTHEST, POLYGONS
from more.data.shards.format import IGNORE
from more.errors import UserError


@dataclass(frozen=True)
class MaskSource:
    """What a worker draws a mask from.

    Attributes:
        database: holds the annotations.
        number: of the image in it.
        file_name: of the image, for messages.
        height: of the image, as the annotations say.
        width: of the image, as the annotations say.
    """

    database: Path
    number: int
    file_name: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"annotations of {self.file_name}"


def read_mask(source: MaskSource) -> np.ndarray:
    """The semantic mask of one image, see `semantic_mask`.

    Args:
        source: which image.

    Returns:
        uint8 `[H, W]`.

    Raises:
        UserError: a segmentation cannot be drawn (names the annotation).
    """
    annotations = stored_annotations(source.database, source.number)
    return semantic_mask(annotations, source.height, source.width)


def semantic_mask(annotations: Iterable[Stored], height: int, width: int) -> np.ndarray:
    """Draw annotations over each other.

    The smaller instance lies on top, by the pixels of its own mask; of two equal ones the later.
    Crowd regions are 255 where no instance covers them.

    Args:
        annotations: in the order of the file.
        height, width: of the image, in pixels.

    Returns:
        uint8 `[H, W]`: 0 background, 1..C classes, 255 crowd region.

    Raises:
        UserError: a segmentation cannot be drawn (names the annotation).
    """
    mask = np.zeros((height, width), np.uint8)
    instances, crowds = [], np.zeros((height, width), bool)
    for annotation in annotations:
        runs = run_lengths(annotation, height, width)
        if annotation.crowd:
            crowds |= coco_mask.decode(runs).astype(bool)
        else:
            instances.append((int(coco_mask.area(runs)), runs, annotation))
    # Only run lengths are kept until their turn: full masks of a crowded picture take much memory.
    for _, runs, annotation in sorted(instances, key=lambda instance: -instance[0]):
        mask[coco_mask.decode(runs).astype(bool)] = annotation.label
    mask[crowds & (mask == 0)] = IGNORE
    return mask


def run_lengths(annotation: Stored, height: int, width: int) -> dict[str, Any]:
    """One annotation as run lengths of pycocotools.

    Args:
        annotation: polygons or run lengths.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        `size` and `counts`.

    Raises:
        UserError: another size than the image, odd or far numbers, counts that do not add up.
    """
    if annotation.kind == POLYGONS:
        return coco_mask.merge(coco_mask.frPyObjects(_polygons(annotation), height, width))
    size = np.frombuffer(annotation.lengths, np.int32).tolist()
    if size != [height, width]:
        raise _refusal(annotation, f"run lengths are for {size[0]}x{size[1]}, the image is "
                                   f"{height}x{width} (height x width)")
    counts = (_decompress(annotation.data) if annotation.kind == COMPRESSED
              else np.frombuffer(annotation.data, np.uint32).tolist())
    # pycocotools leaves pixels that no run reaches as they happen to be in memory.
    if sum(counts) != height * width or min(counts) < 0:
        raise _refusal(annotation, f"run lengths do not add up to {height * width} pixels")
    return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)


def _decompress(text: bytes) -> list[int]:
    """Run lengths from COCO's text form; a damaged text gives a wrong sum, which the caller checks.

    A character carries five bits, the lowest ones first. Bit 32 says that the number continues, and
    bit 16 of its last character that it is negative. From the fourth on, a number is the difference
    to the one two places before.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if shift == 0 else [-1]


def _polygons(annotation: Stored) -> list[np.ndarray]:
    numbers = np.frombuffer(annotation.data, np.float64)
    lengths = np.frombuffer(annotation.lengths, np.int32)
    if (lengths % 2).any():
        raise _refusal(annotation, "a polygon has an odd count of numbers")
    if not np.abs(numbers).max() <= FARTHEST:
        raise _refusal(annotation, "a polygon has a point far outside every image")
    return np.split(numbers, np.cumsum(lengths)[:-1])


def _refusal(annotation: Stored, why: str) -> UserError:
    return UserError(f"annotation {annotation.name}: {why}", fix="correct this annotation")
