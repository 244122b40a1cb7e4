"""The state of a set of masks on disk: what is finished, what is missing, and its manifest.

Several ranks may work on one set without a lock: each writes only its own shards. Whoever finds
every shard accounted for writes the manifest, and what it writes depends on the shards alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from more.data.shards.format import MANIFEST, TEMPORARY, is_temporary, sidecar_path, to_json
from more.data.shards.manifest import (
    Manifest,
    ShardEntry,
    finished_shards,
    read_manifest,
    write_manifest,
)
from more.errors import UserError
from more.jobs.failures import lacks_images, read_failures, reopen_shard
from more.refine.retry import manifest_turn
from more.refine.shard import ShardSpec

TRIES = 3


def unfinished(specs: Sequence[ShardSpec], own: Sequence[ShardSpec]) -> list[ShardSpec]:
    """The shards of `own` that are to be made: missing, damaged, or lacking images.

    Of a shard that lacks images only these are to be tried (`ShardSpec.again`).

    Args:
        specs: all shards of the set.
        own: those of this process.

    Raises:
        UserError: something in the folder was made with other parameters.
    """
    done = finished_beside_others(specs[0].out, specs[0].provenance)
    todo = []
    for spec in own:
        entry = done.get(spec.path.name)
        if not lacks_images(entry, spec.rows, spec.path):
            continue
        failures = read_failures(spec.path)
        if failures and accounted(spec) and (entry or len(failures) == spec.rows):
            spec = replace(spec, again=tuple(image_id for image_id, _ in failures))
        todo.append(spec)
    return todo


def reopen(specs: Sequence[ShardSpec]) -> None:
    """From now on these shards and the set are unfinished, whatever they lacked before."""
    for spec in specs:
        reopen_shard(spec.path)


def sweep(specs: Sequence[ShardSpec]) -> None:
    """Remove what interrupted writers left of these shards; nobody may be writing them."""
    for spec in specs:
        stem = spec.path.stem
        for pattern in (f"{stem}.*{TEMPORARY}*", f"failures-{stem}.*{TEMPORARY}*"):
            for path in spec.path.parent.glob(pattern):
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)


def accounted(spec: ShardSpec) -> bool:
    """Is every image of the shard either in it or listed as failed? Reads no payload."""
    try:
        failed = len(read_failures(spec.path))
        if failed == spec.rows:
            return True
        entry = json.loads(sidecar_path(spec.path).read_text("utf-8"))["entry"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return entry["rows"] + failed == spec.rows


def finish(specs: Sequence[ShardSpec], class_names: list[str], alone: bool = True) -> bool:
    """Write the manifest if every shard is accounted for and it does not say so already.

    Args:
        specs: all shards of the set.
        class_names: foreground classes in order.
        alone: no other process writes into the folder.

    Returns:
        True if the set is finished.
    """
    return put_manifest(Path(specs[0].out), lambda: _wanted(specs, class_names), alone)


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


def _wanted(specs: Sequence[ShardSpec], class_names: list[str]) -> Manifest | None:
    """The manifest that the shards call for; None while one is not accounted for."""
    if not all(accounted(spec) for spec in specs):
        return None
    entries = finished_beside_others(specs[0].out, specs[0].provenance)
    listed = {spec.number: read_failures(spec.path) for spec in specs}
    rows = [entries[spec.path.name].rows if spec.path.name in entries else 0 for spec in specs]
    whole = all(count + len(listed[spec.number]) == spec.rows
                for count, spec in zip(rows, specs, strict=True))
    if not whole or not entries:
        return None
    failures = [[image_id, why] for failed in listed.values() for image_id, why in failed]
    return Manifest("masks", list(class_names), sorted(entries.values(), key=lambda e: e.file),
                    specs[0].provenance, {"failures": failures})


def _written(out: Path) -> bytes | None:
    """The content of the manifest that is there."""
    try:
        return to_json(asdict(read_manifest(out))) if (out / MANIFEST).is_file() else None
    except UserError:  # removed a moment ago
        return None


def finished_beside_others(folder: Path | str,
                           provenance: dict[str, Any]) -> dict[str, ShardEntry]:
    """`finished_shards`, also while another rank replaces a shard or the manifest.

    Raises:
        UserError: something in the folder was made with other parameters.
    """
    for _ in range(TRIES):
        try:
            return finished_shards(folder, provenance)
        except (UserError, FileNotFoundError):
            time.sleep(0.05)
    return finished_shards(folder, provenance)
