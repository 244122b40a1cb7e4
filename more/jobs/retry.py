"""Failed images of a finished set, tried again: the new shard takes the old one's place at the end.

A second try leaves the set as it is. It writes the new shard, its entry and its failures beside
the old ones (`again_path`); rows that were done are copied (`more.jobs.rows`). Then `swap` takes
four steps:

1. the manifest names the new file instead of the old one;
2. the new content gets the shard's usual name, which the manifest does not name now;
3. the manifest names the usual file again;
4. the files of the second try are removed.

The manifest is replaced in one go and the files that it names are whole after every step. So
whoever stops in between (a kill, a full disk) leaves a finished set; the next run ends the swap.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from more.data.shards.format import AGAIN, MANIFEST, commit, sidecar_path, temporary_path
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import (
    ShardEntry,
    intact,
    read_manifest,
    write_manifest,
    write_sidecar,
)
from more.data.shards.reader import shard_ids
from more.errors import UserError
from more.jobs.bookkeeping import drop_failures, failures_path, read_failures, write_failures

WAIT = 600.0
"""Seconds that a rank waits for its turn to change the manifest."""
Done = tuple[ShardEntry, dict[str, Any]]


def again_path(shard: Path) -> Path:
    """The shard of a second try, until it is swapped in: beside the one that it will replace."""
    return shard.with_name(shard.stem + AGAIN)


@contextmanager
def manifest_turn(folder: Path, alone: bool) -> Iterator[None]:
    """One rank at a time changes what the manifest names; others wait.

    Args:
        folder: the set.
        alone: this process holds the folder's lock already.

    Yields:
        Nothing; the turn is held inside the `with` block.

    Raises:
        UserError: another process holds the folder for longer than `WAIT`.
    """
    with ExitStack() as held:
        end = time.monotonic() + WAIT
        while not alone:
            try:
                held.enter_context(folder_lock(folder))
                break
            except UserError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)
        yield


def swap(shards: Iterable[Path], alone: bool = True) -> None:
    """Put finished second tries in their place and remove unfinished ones.

    Call it at the end of a job, and at the start for what an interrupted job left.

    Args:
        shards: usual names of one set's shards that no other process writes.
        alone: as for `manifest_turn`.
    """
    tried = [shard for shard in shards if any(path.exists() for path in _files(shard))]
    if not tried:
        return
    folder = tried[0].parent
    with manifest_turn(folder, alone):
        new = {shard: done for shard in tried if (done := _finished(again_path(shard)))}
        if new:
            _name_in_manifest(folder, {shard: entry for shard, (entry, _) in new.items()})
            usual = {shard: replace(entry, file=shard.name) for shard, (entry, _) in new.items()}
            for shard, (_, provenance) in new.items():
                _take_place(shard, usual[shard], provenance)
            _name_in_manifest(folder, usual)
        for shard in tried:
            for path in _files(shard):
                path.unlink(missing_ok=True)


def _files(shard: Path) -> tuple[Path, Path, Path]:
    """What a second try writes. The entry comes first: without it, the others count for nothing."""
    again = again_path(shard)
    return sidecar_path(again), failures_path(again), again


def _finished(again: Path) -> Done | None:
    """Entry and provenance of a second try; None where it was interrupted."""
    try:
        recorded = json.loads(sidecar_path(again).read_text("utf-8"))
        entry, provenance = ShardEntry(**recorded["entry"]), recorded["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (entry, provenance) if intact(again, entry) else None


def _name_in_manifest(folder: Path, new: dict[Path, ShardEntry]) -> None:
    """Have the manifest name these entries for these shards; nothing in an unfinished set."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    names = {path.name for shard in new for path in (shard, again_path(shard))}
    entries = [entry for entry in manifest.shards if entry.file not in names]
    made = {image_id for shard in new for image_id in shard_ids(again_path(shard))}
    reasons = dict(pair for shard in new for pair in read_failures(again_path(shard)))
    failures = [[image_id, reasons.get(image_id, why)]
                for image_id, why in manifest.extra.get("failures", []) if image_id not in made]
    write_manifest(folder, manifest.kind, manifest.class_names, [*entries, *new.values()],
                   manifest.provenance, {**manifest.extra, "failures": failures})


def _take_place(shard: Path, entry: ShardEntry, provenance: dict[str, Any]) -> None:
    """Give the second try's content the usual names."""
    temporary = temporary_path(shard)
    try:
        try:
            os.link(again_path(shard), temporary)  # takes no space
        except OSError:  # a file system without links
            shutil.copyfile(again_path(shard), temporary)
        commit(temporary, shard)
    finally:  # renaming a link to a link of the same file leaves both
        temporary.unlink(missing_ok=True)
    write_sidecar(shard, entry, provenance)
    failures = read_failures(again_path(shard))
    if failures:
        write_failures(shard, failures)
    else:
        drop_failures(shard)
