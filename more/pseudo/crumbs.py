"""What a worker leaves on disk for the driver: the image in hand, and the images that failed."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from more.data.shards.format import MANIFEST, TEMPORARY, sidecar_path, to_json, write_atomic
from more.data.shards.manifest import ShardEntry
from more.data.shards.writer import ShardWriter
from more.errors import UserError

Spec = TypeVar("Spec")
CRASHES = 2


def crumb_path(shard: Path) -> Path:
    """File that names the image a worker has in hand; swept away with other temporaries."""
    return shard.with_name(f"{shard.name}{TEMPORARY}row")


def leave_crumb(shard: Path, image_id: str) -> None:
    """Record, before an image is touched, that this process works on it."""
    crumb_path(shard).write_text(json.dumps([os.getpid(), image_id]), encoding="utf-8")


def clear_crumb(shard: Path) -> None:
    """No image is in hand any more."""
    crumb_path(shard).unlink(missing_ok=True)


def read_crumb(shard: Path) -> tuple[int, str] | None:
    """Process id and image id of the crumb; None where there is none (or half of one)."""
    try:
        pid, image_id = json.loads(crumb_path(shard).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return pid, image_id


class Crumbs:
    """Finds the image that kills workers: the one in hand at two deaths is left out."""

    def __init__(self) -> None:
        self.deaths: Counter[tuple[Path, str]] = Counter()

    def revise(self, spec: Spec) -> Spec:
        """The task to try after a worker died on `spec` (or beside it).

        Args:
            spec: with `path` (the shard) and `skip` (pairs of image id and reason).
        """
        crumb = read_crumb(spec.path)
        clear_crumb(spec.path)
        if crumb is None:
            return spec
        self.deaths[spec.path, crumb[1]] += 1
        if self.deaths[spec.path, crumb[1]] < CRASHES:
            return spec
        reason = f"the worker process died on it {CRASHES} times"
        return replace(spec, skip=(*spec.skip, (crumb[1], reason)))


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
