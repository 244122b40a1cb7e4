"""What a worker leaves on disk for the driver: the image it works on, and the images that failed.

A worker that dies says nothing. So it notes each image before it touches it, in a small file beside
the shard (the image in hand). Images that failed with an error are listed in another file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from more.data.shards.format import MANIFEST, TEMPORARY, sidecar_path, to_json, write_atomic
from more.errors import UserError

Spec = TypeVar("Spec")
DEATHS = 2
"""Deaths of workers on one image after which it is left out."""


def in_hand_path(shard: Path) -> Path:
    """File that names the image a worker has in hand; swept away with other temporaries."""
    return shard.with_name(f"{shard.name}{TEMPORARY}row")


def note_in_hand(shard: Path, image_id: str) -> None:
    """Record, before an image is touched, that this process works on it."""
    in_hand_path(shard).write_text(json.dumps([os.getpid(), image_id]), encoding="utf-8")


def clear_in_hand(shard: Path) -> None:
    """No image is in hand any more."""
    in_hand_path(shard).unlink(missing_ok=True)


def read_in_hand(shard: Path) -> tuple[int, str] | None:
    """Process id and image id of the image in hand; None without a note (or with half of one)."""
    try:
        pid, image_id = json.loads(in_hand_path(shard).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return pid, image_id


class DeadlyImages:
    """Finds the image that kills workers: the one in hand at two deaths is left out."""

    def __init__(self) -> None:
        self.deaths: Counter[tuple[Path, str]] = Counter()

    def revise(self, spec: Spec) -> Spec:
        """The task to try after a worker died on `spec` (or beside it).

        Args:
            spec: with `path` (the shard) and `skip` (pairs of image id and reason).

        Returns:
            The same task, or one that also skips the image that was in hand.
        """
        found = read_in_hand(spec.path)
        clear_in_hand(spec.path)
        if found is None:
            return spec
        self.deaths[spec.path, found[1]] += 1
        if self.deaths[spec.path, found[1]] < DEATHS:
            return spec
        reason = f"the worker process died on it {DEATHS} times"
        return replace(spec, skip=(*spec.skip, (found[1], reason)))


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


def failure_reason(error: Exception) -> str:
    """What is recorded of the error that an image failed with."""
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {error}"


def reopen_shard(shard: Path) -> None:
    """The shard and its set are unfinished from now on, whatever the shard lacked before."""
    (shard.parent / MANIFEST).unlink(missing_ok=True)
    sidecar_path(shard).unlink(missing_ok=True)  # first: without it no list of failures counts
    drop_failures(shard)
