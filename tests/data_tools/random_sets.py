"""Shard sets of random payloads, for tools that copy them without looking inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from more.data.shards.format import PAYLOADS, shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from tests.data.sets import NAMES

ROUTE = {"tool": "more localize", "version": "0", "map": "decoder", "tags": "none",
         "scales": [1.0, 1.5], "flip": True, "threshold": None, "data": "d", "weights": "w"}


def a_set(folder: Path, ids: list[str], kind: str = "images", names: list[str] = NAMES,
          provenance: dict | None = None, extra: dict | None = None, rows: int = 4,
          size: int = 300) -> Path:
    """A set of random payloads; every third row has no mask (or confidence)."""
    folder.mkdir(parents=True)
    entries = []
    for number, start in enumerate(range(0, len(ids), rows)):
        with ShardWriter(folder / shard_name(number), kind, names) as writer:
            for image_id in ids[start:start + rows]:
                rng = np.random.default_rng(list(image_id.encode()))
                first, second = rng.bytes(size), rng.bytes(50) if rng.random() < 0.7 else None
                data = {"images": {"image": first, "mask": second}, "seeds": {"seed": first},
                        "masks": {"mask": first, "confidence": second}}[kind]
                writer.add(image_id, rng.integers(0, 2, len(names)), (len(image_id), 7), **data)
        entries.append(writer.entry)
    write_manifest(folder, kind, names, entries, provenance or {"tool": "t"}, extra)
    return folder


def content(*folders: Path) -> dict[str, tuple]:
    """Every row of some sets by id: tags, size and payload bytes."""
    found = {}
    for shards in map(ShardSet, folders):
        for row, image_id in enumerate(shards.ids):
            found[image_id] = (shards.tags[row].tolist(), shards.sizes[row].tolist(),
                               *(shards.blob(name, row) for name in PAYLOADS))
    return found


def ids(letter: str, count: int) -> list[str]:
    """`a-Ü写 0`, `a-Ü写 1`, …"""
    return [f"{letter}-Ü写 {k}" for k in range(count)]
