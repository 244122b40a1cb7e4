"""Copying rows of finished shard sets to new shards without decoding: for merge and split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from data_tools.build import ShardJob, ShardResult
from more.data.shards.format import PAYLOADS
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.evaluation.routes import facts

# Lists of what a set does not hold: they belong to that set alone.
LISTS = ("left_out", "failures")
# What says how a set was written, not how its seeds or masks were made.
_WRITING = ("tool", "version", "shard_size", "rows_per_shard", "parameters", "inputs")


@dataclass(frozen=True)
class Row:
    """A row to copy.

    Attributes:
        id: of the image.
        folder: of its set.
        shard: number of its shard.
        place: number of the row in that shard.
    """

    id: str
    folder: str
    shard: int
    place: int


def rows_of(shards: ShardSet) -> list[Row]:
    """All rows of a set, in order."""
    return [Row(image_id, str(shards.path), *shards.locate(row))
            for row, image_id in enumerate(shards.ids)]


def copy_rows(part: ShardJob) -> ShardResult:
    """Write one shard from `Row`s: payload bytes as they are, each checksum compared.

    Args:
        part: what to write.

    Returns:
        What became of it.

    Raises:
        UserError: a source shard is missing, or rows of it are damaged (names all of them).
    """
    writer = ShardWriter(part.path, part.kind, part.class_names, part.provenance)
    damaged = []
    for (folder, shard), rows in groupby(part.rows, key=lambda row: (row.folder, row.shard)):
        source = ShardSet(folder, only=[shard])
        for row in rows:
            reason = part.take(row.id)
            if reason is not None:
                damaged.append(f"{folder}: image {row.id!r}: {reason}")
                continue
            try:
                _copy(writer, source, row)
            except UserError as error:
                damaged.append(error.message)
        source.close()
    part.take(None)
    if damaged:
        raise UserError("; ".join(damaged),
                        fix="run data_tools.verify on the set, and make what it names again")
    entry = writer.close()
    return ShardResult(entry, len(writer), [])


def _copy(writer: ShardWriter, source: ShardSet, row: Row) -> None:
    if source.ids[row.place] != row.id:
        raise UserError(f"{row.folder}: changed while it was read ({row.id!r} moved)")
    data = {name: source.blob(name, row.place) or None for name in PAYLOADS}
    writer.add(row.id, source.tags[row.place], tuple(source.sizes[row.place]), **data,
               file=source.file_name(row.place))


def open_source(path: Path) -> ShardSet:
    """Open a set to copy from; every file is hashed, since its digest goes into provenance."""
    return ShardSet(path, check="full")


def input_record(shards: ShardSet) -> dict[str, Any]:
    """What provenance keeps of a source: digest of its content, its tool, number of images."""
    return {"manifest": shards.manifest.digest, "images": len(shards),
            "tool": str(shards.manifest.provenance.get("tool", "unknown"))}


def origin(sets: Sequence[ShardSet]) -> dict[str, Any]:
    """How seeds or masks were made (map, tags, scales, CRF, …), as far as all sets agree.

    Args:
        sets: of one kind.

    Returns:
        Values for the top level of the new provenance, where refining and scoring look for them;
        none for images.
    """
    if sets[0].kind == "images":
        return {}
    made = agreed([_facts(shards.manifest.provenance) for shards in sets])
    return {key: value for key, value in made.items() if key not in _WRITING}


def _facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """How seeds or masks were made: not the parameters of an earlier merge or split."""
    copied = str(provenance.get("tool", "")).startswith("data_tools.")
    return provenance if copied else facts(provenance)


def agreed(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several dictionaries have in common.

    Args:
        values: the dictionaries, which may hold others.

    Returns:
        The keys that all hold with an equal value; inner dictionaries are compared likewise.
    """
    first, rest = values[0], values[1:]
    common: dict[str, Any] = {}
    for key, value in first.items():
        others = [other[key] for other in rest if key in other]
        if len(others) < len(rest):
            continue
        if all(_same(value, other) for other in others):
            common[key] = value
        elif all(isinstance(item, dict) for item in (value, *others)):
            common[key] = agreed([value, *others])
    return common


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
