"""What a worker leaves on disk for the driver: the images that failed, beside their shard."""

from __future__ import annotations

import json
from pathlib import Path

from more.data.shards.format import MANIFEST, sidecar_path, to_json, write_atomic
from more.data.shards.manifest import ShardEntry
from more.data.shards.writer import ShardWriter
from more.errors import UserError


def failures_path(shard: Path) -> Path:
    """File beside a shard that lists the images it lacks."""
    return shard.with_name(f"failures-{shard.stem}.json")


def write_failures(shard: Path, failures: list[tuple[str, str]]) -> None:
    """Record the failed images of a shard. Call it before the shard itself is finished."""
    write_atomic(failures_path(shard), to_json(failures))


def drop_failures(shard: Path) -> None:
    """The shard lacks nothing. Call it after the shard itself is finished."""
    failures_path(shard).unlink(missing_ok=True)


def read_failures(shard: Path) -> list[tuple[str, str]]:
    """Images that a shard lacks, with reasons; empty where nothing failed."""
    path = failures_path(shard)
    if not path.is_file():
        return []
    return [(image_id, reason) for image_id, reason in json.loads(path.read_text("utf-8"))]


def lacks_images(entry: ShardEntry | None, rows: int, shard: Path) -> bool:
    """Whether a shard is to be made again: it is not finished, or has not all of its images.

    Those that it lacks need not be listed: the process may have been killed between two files.

    Args:
        entry: of the finished shard; None where there is none.
        rows: images that it is to hold.
        shard: its file.
    """
    return entry is None or entry.rows != rows or bool(read_failures(shard))


def reopen_shard(shard: Path) -> None:
    """The shard and its set are unfinished from now on, whatever the shard lacked before."""
    (shard.parent / MANIFEST).unlink(missing_ok=True)
    sidecar_path(shard).unlink(missing_ok=True)  # first: without it no list of failures counts
    drop_failures(shard)


def finish_shard(writer: ShardWriter, shard: Path,
                 failures: list[tuple[str, str]]) -> ShardEntry | None:
    """Write a shard; None where it has no row.

    Its failures are on disk before it, so that a kill cannot hide them.
    """
    if failures:
        write_failures(shard, failures)
    if not len(writer):
        sidecar_path(shard).unlink(missing_ok=True)
        shard.unlink(missing_ok=True)
        return None
    entry = writer.close()
    if not failures:
        drop_failures(shard)
    return entry


def failure_reason(error: Exception) -> str:
    """What is recorded of the error that an image failed with."""
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {error}"
