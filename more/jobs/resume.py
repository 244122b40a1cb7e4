"""The state of a set of shards on disk: what is finished, what is missing, and its manifest.

Several ranks may work on one set without a lock: each writes only its own shards. Whoever finds
every shard accounted for writes the manifest, and what it writes depends on the shards alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from more.data.shards.format import (
    MANIFEST,
    TEMPORARY,
    is_temporary,
    shard_name,
    sidecar_path,
    to_json,
)
from more.data.shards.manifest import (
    Manifest,
    ShardEntry,
    finished_shards,
    read_manifest,
    write_manifest,
)
from more.errors import UserError
from more.jobs.bookkeeping import read_failures
from more.jobs.retry import manifest_turn

TRIES = 3


@dataclass(frozen=True)
class PlannedSet:
    """A set of shards as it is to become.

    Attributes:
        folder: where it lies.
        kind: "seeds" or "masks".
        class_names: foreground classes in order.
        provenance: what it is made from and how.
        rows: images that each shard is to hold, by its number.
        extra: further values for the manifest.
    """

    folder: Path
    kind: str
    class_names: list[str]
    provenance: dict[str, Any]
    rows: list[int]
    extra: dict[str, Any]

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self.folder / shard_name(number)


def images_to_try(entry: ShardEntry | None, rows: int, shard: Path) -> list[str] | None:
    """The images of a shard that are still to be made.

    Those that it lacks need not be listed: the process may have been killed between two files.
    Then it is made anew.

    Args:
        entry: of the finished shard; None where there is none.
        rows: images that it is to hold.
        shard: its file.

    Returns:
        Ids of those that failed before, where every other one is done; empty where the shard is
        finished; None where all are to be made.
    """
    failures = read_failures(shard)
    if not failures:
        return [] if entry is not None and entry.rows == rows else None
    if (entry.rows if entry else 0) + len(failures) == rows:
        return [image_id for image_id, _ in failures]
    return None


def accounted(shard: Path, rows: int) -> bool:
    """Whether every image of a shard is either in it or listed as failed; reads no payload.

    Args:
        shard: its file.
        rows: images that it is to hold.

    Returns:
        True if so.
    """
    try:
        failed = len(read_failures(shard))
        if failed == rows:
            return True
        entry = json.loads(sidecar_path(shard).read_text("utf-8"))["entry"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return entry["rows"] + failed == rows


def sweep(shards: Iterable[Path]) -> None:
    """Remove what interrupted writers left of these shards; nobody may be writing them."""
    for shard in shards:
        for pattern in (f"{shard.stem}.*{TEMPORARY}*", f"failures-{shard.stem}.*{TEMPORARY}*"):
            for path in shard.parent.glob(pattern):
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)


def finish_set(planned: PlannedSet, alone: bool = True) -> bool:
    """Write the manifest if every shard is accounted for and it does not say so already.

    Args:
        planned: the set.
        alone: no other process writes into the folder.

    Returns:
        True if the set is finished.
    """
    return put_manifest(planned.folder, lambda: _wanted(planned), alone)


def put_manifest(folder: Path, wanted: Callable[[], Manifest | None], alone: bool) -> bool:
    """Write a manifest, unless the same is there.

    Args:
        folder: the set.
        wanted: the manifest that the shards call for; None while the set is unfinished.
        alone: no other process writes into the folder.

    Returns:
        True if the set is finished.
    """
    for _ in range(TRIES):
        try:
            manifest = wanted()
            if manifest is None:
                return False
            if _written(folder) == to_json(asdict(manifest)):
                return True
            with manifest_turn(folder, alone):
                manifest = manifest if alone else wanted()  # before its turn, ranks swapped shards
                if manifest is None:
                    return False
                write_manifest(folder, manifest.kind, manifest.class_names, manifest.shards,
                               manifest.provenance, manifest.extra)
        except FileNotFoundError:  # another rank replaced the file just then
            continue
        if alone:
            return True
        # Else look again: a rank may have replaced a shard after it was looked at.
    return False


def _wanted(planned: PlannedSet) -> Manifest | None:
    """The manifest that the shards call for; None while one is not accounted for."""
    shards = [planned.path(number) for number in range(len(planned.rows))]
    if not all(map(accounted, shards, planned.rows)):
        return None
    entries = finished_beside_others(planned.folder, planned.provenance)
    failed = [read_failures(shard) for shard in shards]
    held = [entries[shard.name].rows if shard.name in entries else 0 for shard in shards]
    whole = all(count + len(listed) == rows
                for count, listed, rows in zip(held, failed, planned.rows, strict=True))
    if not whole or not entries:
        return None
    failures = [[image_id, why] for listed in failed for image_id, why in listed]
    return Manifest(planned.kind, list(planned.class_names),
                    sorted(entries.values(), key=lambda entry: entry.file), planned.provenance,
                    {**planned.extra, "failures": failures})


def _written(out: Path) -> bytes | None:
    """The content of the manifest that is there."""
    try:
        return to_json(asdict(read_manifest(out))) if (out / MANIFEST).is_file() else None
    except UserError:  # removed a moment ago
        return None


def finished_beside_others(folder: Path | str,
                           provenance: dict[str, Any]) -> dict[str, ShardEntry]:
    """`finished_shards`, also while another rank replaces a shard or the manifest.

    Args:
        folder: the set.
        provenance: what the set is made from and how.

    Returns:
        Entries of the finished shards by file name.

    Raises:
        UserError: something in the folder was made with other parameters.
    """
    for _ in range(TRIES):
        try:
            return finished_shards(folder, provenance)
        except (UserError, FileNotFoundError):
            time.sleep(0.05)
    return finished_shards(folder, provenance)
