"""Which image a worker has in hand, on disk for the driver: so the one that kills it is found."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from more.data.shards.format import TEMPORARY

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
