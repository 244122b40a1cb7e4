"""Numbers about a shard set: counts, sizes, images and pixels per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.tool import parallel
from more.data.shards.format import IGNORE, PAYLOADS
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.progress import track

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def describe(shards: ShardSet) -> dict[str, Any]:
    """Describe a set.

    Args:
        shards: the set.

    Returns:
        Kind, counts, sizes, images per class and provenance, as JSON values.
    """
    counts = shards.tags.astype(np.int64).sum(0)
    lengths = {name: payload_lengths(shards, name) for name in PAYLOADS if shards.has(name)}
    per_image = shards.tags.sum(1)
    return {
        "path": str(shards.path), "kind": shards.kind, "images": len(shards),
        "shards": len(shards.shard_rows),
        "bytes": sum(entry.bytes for entry in shards.manifest.shards),
        "payloads": list(lengths),
        "present": {name: int((length > 0).sum()) for name, length in lengths.items()},
        **describe_sizes(shards.sizes),
        "tags_per_image": float(per_image.mean()),
        "without_tags": int((per_image == 0).sum()),
        "classes": dict(zip(shards.class_names, counts.tolist(), strict=True)),
        "provenance": shards.manifest.provenance, "extra": shards.manifest.extra,
    }


def describe_sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Describe the sizes of images.

    Args:
        sizes: `[N, 2]`, height and width.

    Returns:
        Smallest, median and largest of each side; percentiles of the longer side and of width by
        height; a histogram of the longer side.
    """
    longer, aspect = sizes.max(1), sizes[:, 1] / sizes[:, 0]
    edges = histogram_edges(longer)
    counts = np.histogram(longer, edges)[0]
    return {
        "smallest": sizes.min(0).tolist(), "median": np.median(sizes, 0).tolist(),
        "largest": sizes.max(0).tolist(),
        "longer_side": {f"p{p}": float(np.percentile(longer, p)) for p in _PERCENTILES},
        "aspect": {f"p{p}": round(float(np.percentile(aspect, p)), 4) for p in _PERCENTILES},
        "longer_side_counts": {f"{low}-{high - 1}" if high - low > 1 else str(low): int(count)
                               for low, high, count in zip(edges, edges[1:], counts, strict=False)},
    }


def histogram_edges(values: np.ndarray, most: int = 10) -> list[int]:
    """Edges of bins for whole numbers.

    Args:
        values: the numbers.
        most: largest number of bins.

    Returns:
        The edges of equal bins, whose width is 1, 2 or 5 times a power of ten.
    """
    low, high = int(values.min()), int(values.max())
    step = next(step for power in range(12) for step in (10 ** power * k for k in (1, 2, 5))
                if high // step - low // step < most)
    first = low // step * step
    return list(range(first, high // step * step + step + 1, step))


def payload_lengths(shards: ShardSet, name: str) -> np.ndarray:
    """How many bytes a payload has in each row.

    Args:
        shards: a whole set.
        name: of the payload.

    Returns:
        int64 `[N]`; 0 for rows without it.
    """
    lengths = []
    for entry in shards.manifest.shards:
        with h5py.File(shards.path / entry.file, "r", locking=False) as file:
            stored = name in file
            lengths.append(np.diff(file[f"{name}/offsets"][:]) if stored
                           else np.zeros(entry.rows, np.int64))
    return np.concatenate(lengths)


@dataclass(frozen=True)
class _Shard:
    folder: Path
    number: int
    rows: int


def count_pixels(shards: ShardSet, workers: int = 0) -> dict[str, dict[str, int]]:
    """Count pixels and images per class in the masks, all of which are decoded.

    Args:
        shards: the set.
        workers: processes, 0 = all cores.

    Returns:
        "pixels" and "images" by name: background, the classes, ignore.

    Raises:
        UserError: the set has no masks, or a mask is damaged or holds a value that is no class.
    """
    if not shards.has("mask"):
        raise UserError(f"{shards.path}: holds no masks to count pixels in",
                        fix="leave --pixels out, or give a set with masks")
    tasks = [_Shard(shards.path, number, rows) for number, rows in enumerate(shards.shard_rows)]
    total = np.zeros((2, IGNORE + 1), np.int64)
    with track(len(shards), "counting pixels") as bar:
        for task, result in parallel(_count_shard, tasks, workers):
            if isinstance(result, BaseException):
                raise result
            total += result
            bar.advance(task.rows)
    names = ["background", *shards.class_names]
    strange = np.flatnonzero(total[0, len(names):IGNORE])
    if len(strange):
        raise UserError(f"{shards.path}: masks hold {strange[0] + len(names)}, which is no class",
                        fix="run data_tools.verify --decode, which names them")
    labels = [*enumerate(names), (IGNORE, "ignore")]
    return {name: {"pixels": int(total[0, k]), "images": int(total[1, k])} for k, name in labels}


def _count_shard(task: _Shard) -> np.ndarray:
    """Pixels and images by mask value, int64 `[2, 256]`."""
    shards = ShardSet(task.folder, only=[task.number])
    total = np.zeros((2, IGNORE + 1), np.int64)
    for row in shards:
        mask = shards.mask(row)
        if mask is not None:
            pixels = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
            total += pixels, pixels > 0
    return total
