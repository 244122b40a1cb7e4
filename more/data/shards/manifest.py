"""The manifest of a shard set and the entry of one shard.

`manifest.json` is written last: a folder without it is unfinished. While a set is being written,
each finished shard has an entry file of the same name (`shard-00000.json`), so that a restarted
job knows what is done and with which parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from more.data.shards.format import (
    FORMAT,
    KINDS,
    MANIFEST,
    check_id,
    sha256_bytes,
    sha256_file,
    sidecar_path,
    to_json,
    write_atomic,
)
from more.errors import UserError

# Entry files of shards in place; not those of shards that are to replace one (`AGAIN`).
_SIDECARS = "shard-*[0-9].json"
REBUILD = "run the command that makes this set again; finished shards are kept"


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: file name, rows, size in bytes, sha256 of the file."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard set is: kind, foreground classes in order, shards, where it came from."""

    kind: str
    class_names: list[str]
    shards: list[ShardEntry]
    provenance: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of images in the set."""
        return sum(entry.rows for entry in self.shards)

    @property
    def digest(self) -> str:
        """sha256 over kind, classes and the shards' hashes: the identity of the content."""
        content = [self.kind, self.class_names, [entry.sha256 for entry in self.shards]]
        return sha256_bytes(to_json(content))


def write_manifest(folder: Path | str, kind: str, class_names: list[str],
                   entries: Iterable[ShardEntry], provenance: dict[str, Any],
                   extra: dict[str, Any] | None = None) -> Manifest:
    """Write `manifest.json` atomically and return it. Call it when every shard is finished.

    Args:
        folder: the shard set.
        kind: "images", "seeds" or "masks".
        class_names: foreground classes in order, without background.
        entries: finished shards, any order.
        provenance: JSON values only: tool, version, parameters, hashes of the inputs. Resuming
            compares it, so nothing in it may depend on time or machine.
        extra: further JSON values for readers.

    Returns:
        The manifest.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {KINDS}")
    manifest = Manifest(kind, list(class_names), sorted(entries, key=lambda entry: entry.file),
                        provenance, extra or {})
    write_atomic(Path(folder) / MANIFEST, to_json({"format": FORMAT, **asdict(manifest)}))
    return manifest


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check `manifest.json`.

    Args:
        folder: the shard set.

    Returns:
        The manifest.

    Raises:
        UserError: no such folder, no manifest, not JSON, another format, or missing fields.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such shard set",
                        fix="give the folder that a data_tools or more command wrote")
    if not path.is_file():
        unfinished = any(folder.glob("shard-*.h5"))
        raise UserError(f"{folder}: {'unfinished shard set, ' if unfinished else ''}no {MANIFEST}",
                        fix=REBUILD if unfinished else "give the folder of a shard set")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(f"{path}: not a shard set of format {FORMAT}",
                            fix="build the set with this version's data_tools")
        entries = [ShardEntry(**entry) for entry in data["shards"]]
        for entry in entries:
            check_id(entry.file)
        manifest = Manifest(data["kind"], list(data["class_names"]), entries,
                            data["provenance"], data["extra"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged manifest ({error})", fix=f"delete it and {REBUILD}") \
            from error
    if manifest.kind not in KINDS:
        raise UserError(f"{path}: unknown kind {manifest.kind!r}", fix=f"known: {', '.join(KINDS)}")
    return manifest


def write_sidecar(shard: Path, entry: ShardEntry, provenance: dict[str, Any]) -> None:
    """Record a finished shard and the parameters it was made with, beside it."""
    write_atomic(sidecar_path(shard), to_json({"entry": asdict(entry), "provenance": provenance}))


def finished_shards(folder: Path | str, provenance: dict[str, Any]) -> dict[str, ShardEntry]:
    """Shards that an interrupted job finished.

    A shard without entry file, or whose size or sha256 differs, is not among them: it is made
    again.

    Args:
        folder: the shard set.
        provenance: of the job that resumes.

    Returns:
        Entries by file name.

    Raises:
        UserError: something in the folder was made with other parameters.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        _refuse_mixing(folder / MANIFEST, read_manifest(folder).provenance, provenance)
    finished = {}
    for path in sorted(folder.glob(_SIDECARS)):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            entry, recorded = ShardEntry(**data["entry"]), data["provenance"]
        except (ValueError, KeyError, TypeError):
            continue
        _refuse_mixing(path, recorded, provenance)
        if intact(folder / entry.file, entry):
            finished[entry.file] = entry
    return finished


def recorded_provenance(folder: Path | str) -> dict[str, Any] | None:
    """What a finished or unfinished set in `folder` was made from and how; None where none is."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return read_manifest(folder).provenance
    for path in sorted(folder.glob(_SIDECARS)):
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))["provenance"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(recorded, dict):
            return recorded
    return None


def intact(path: Path, entry: ShardEntry) -> bool:
    """Whether a file is there with the size and sha256 of its entry."""
    return (path.is_file() and path.stat().st_size == entry.bytes
            and sha256_file(path) == entry.sha256)


def _refuse_mixing(path: Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise when two provenances differ, naming the first few values that do."""
    old, new = _flatten(json.loads(to_json(recorded))), _flatten(json.loads(to_json(wanted)))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        detail = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
                           for key in changed[:4])
        raise UserError(f"{path}: made with other parameters ({detail})",
                        fix="write to a new folder, or delete this one first")


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix or "value": value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
