"""What the converters share: records to shards over processes, resumable, with counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_tools.images import check_image, check_values
from data_tools.pool import parallel
from more import __version__
from more.data.shards.codec import encode_mask, mask_values
from more.data.shards.format import IGNORE, MANIFEST, remove_temporaries, shard_name
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import ShardEntry, finished_shards, write_manifest
from more.data.shards.reader import shard_ids
from more.data.shards.writer import ShardWriter, check_id
from more.errors import UserError
from more.progress import Tally, track


@dataclass(frozen=True)
class Record:
    """One image to convert: files, and class indices (0-based) or None for "from the mask"."""

    id: str
    image: Path
    mask: Path | None = None
    tags: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ShardSpec:
    """All that a worker needs to write one shard."""

    path: Path
    class_names: list[str]
    provenance: dict[str, Any]
    records: list[Record]
    read_mask: Callable[[Path], np.ndarray]
    skip_bad: bool


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard; `entry` is None when it was not written."""

    entry: ShardEntry | None
    rows: int
    bad: list[tuple[str, str]]


def automatic_shard_size(images: int) -> int:
    """Rows per shard: about 16 shards for small sets, 256 rows for large ones.

    A shard is the unit of parallel work later on, so a small set should still have several.
    """
    return min(max(images // 16, 32), 256)


def convert(out: Path, records: Sequence[Record], class_names: list[str],
            provenance: dict[str, Any], read_mask: Callable[[Path], np.ndarray], *,
            shard_size: int = 0, workers: int = 0, skip_bad: bool = False) -> Tally:
    """Write `records` as the shard set `out`; finished shards of an earlier run are kept.

    The manifest is written only when every shard is there. Files do not depend on the number of
    workers, on time or on interruptions.

    Args:
        out: folder of the set.
        records: in the order in which they are to be stored.
        class_names: foreground classes in order.
        provenance: tool, parameters, digests of the inputs; another one in `out` is refused.
        read_mask: mask file → uint8 `[H, W]`, a function of a module (it travels to workers).
        shard_size: rows per shard, 0 = automatic.
        workers: processes, 0 = all cores.
        skip_bad: leave unreadable images out instead of failing.

    Raises:
        UserError: nothing to convert, bad or repeated ids, `out` busy or made otherwise.
    """
    check_records(records)
    size = shard_size if shard_size > 0 else automatic_shard_size(len(records))
    provenance = {**provenance, "version": __version__, "shard_size": size, "skip_bad": skip_bad}
    tally = Tally("images")
    with folder_lock(out):
        entries = finished_shards(out, provenance)
        remove_temporaries(out)
        specs = []
        for number, start in enumerate(range(0, len(records), size)):
            part = list(records[start:start + size])
            if shard_name(number) in entries:
                tally.skip(len(part))
                continue
            specs.append(ShardSpec(out / shard_name(number), class_names, provenance, part,
                                   read_mask, skip_bad))
        _write_shards(specs, workers, entries, tally)
        complete = len(entries) == -(-len(records) // size)
        if complete and (specs or not (out / MANIFEST).is_file()):
            write_manifest(out, "images", class_names, entries.values(), provenance,
                           {"left_out": _left_out(out, entries, records)})
    return tally


def _write_shards(specs: list[ShardSpec], workers: int, entries: dict[str, ShardEntry],
                  tally: Tally) -> None:
    """Run the workers; add what they finish to `entries` and the counts to `tally`."""
    with track(sum(len(spec.records) for spec in specs), "writing shards",
               disable=not specs) as bar:
        for spec, result in parallel(write_shard, specs, workers):
            bar.advance(len(spec.records))
            if isinstance(result, BaseException):
                tally.fail(spec.path.name, getattr(result, "message", None) or repr(result))
                continue
            for name, why in result.bad:
                if result.entry is None:
                    tally.fail(name, why)
                else:  # left out on request, recorded in the manifest
                    tally.skip()
                    bar.note(f"left out {name}: {why}")
            if result.entry is None and result.bad:
                bar.note(f"{spec.path.name} is not written, its {len(spec.records)} images wait: "
                         "replace the bad ones, or leave them out with --skip-bad")
            tally.ok(result.rows)
            if result.entry is not None:
                entries[result.entry.file] = result.entry


def write_shard(spec: ShardSpec) -> ShardResult:
    """Write one shard; without `skip_bad` a single unreadable image keeps it from being written."""
    cv2.setNumThreads(0)
    bad = []
    writer = ShardWriter(spec.path, "images", spec.class_names, spec.provenance)
    for record in spec.records:
        try:
            _add(writer, record, spec.read_mask)
        except (UserError, ValueError, OSError) as error:
            bad.append((record.id, str(getattr(error, "message", error))))
    if len(writer) == 0 or (bad and not spec.skip_bad):
        return ShardResult(None, 0, bad)
    entry = writer.close()
    return ShardResult(entry, len(writer), bad)


def _add(writer: ShardWriter, record: Record, read_mask: Callable[[Path], np.ndarray]) -> None:
    data = record.image.read_bytes()
    size = check_image(data, record.image)
    count = len(writer.class_names)
    mask = None if record.mask is None else read_mask(record.mask)
    if mask is not None:
        if mask.shape != size:
            raise UserError(f"{record.mask}: mask is {mask.shape[0]}x{mask.shape[1]}, the image "
                            f"{size[0]}x{size[1]} (height x width)")
        check_values(mask, count, record.mask)
    tags = np.zeros(count, np.uint8)
    present = record.tags
    if present is None:
        present = tuple(int(v) - 1 for v in mask_values(mask) if v not in (0, IGNORE))
    tags[list(present)] = 1
    writer.add(record.id, tags, size, image=data,
               mask=None if mask is None else encode_mask(mask))


def check_records(records: Sequence[Record]) -> None:
    """Raise UserError for an empty list, ids that cannot be file names, and ids given twice."""
    if not records:
        raise UserError("there is no image to convert", fix="check the list of images")
    seen: set[str] = set()
    for record in records:
        check_id(record.id)
        if record.id in seen:
            raise UserError(f"id {record.id!r} comes twice in the list", fix="remove one of them")
        seen.add(record.id)


def _left_out(out: Path, entries: dict[str, ShardEntry], records: Iterable[Record]) -> list[str]:
    """Ids that were listed and are in no shard (`skip_bad`)."""
    stored = {image_id for file in entries for image_id in shard_ids(out / file)}
    return [record.id for record in records if record.id not in stored]
