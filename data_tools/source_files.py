"""Whether the files that a set was made from are still the same, compared by their whole content.

The digest in a set's provenance covers ids, tags, sizes and sha256 of all image and mask files, so
it is the same for a copy of them. A file `.sources` in the set's folder notes size and times of
each file at the time it was hashed; a file that still has them is not read again. `.sources` does
not belong to the set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from more.data.shards.format import sha256_bytes, sha256_file, to_json, write_atomic
from more.data.shards.manifest import recorded_provenance
from more.device import usable_cores
from more.errors import UserError, first_few
from more.progress import say, track

NOTES = ".sources"
COMPARED = "ids, tags, and the content (sha256) of every image and mask file"
_SETTLED = 2.0  # seconds: a file changed later than that before its hash may change once more
_GROUP = 32  # files that a thread hashes in one call
Stat = tuple[int, int, int]  # bytes, modification and change time in ns


@dataclass(frozen=True)
class Note:
    """What was known of a file when it was hashed."""

    stat: Stat
    sha256: str


def with_sources(out: Path, records: Sequence[Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """Add a digest of the source files to a set's provenance.

    Args:
        out: folder of the set, locked; the notes there are renewed.
        records: `data_tools.convert.Record`s.
        provenance: as the tool has it.

    Returns:
        The provenance with "sources": {"files", "sha256"}. If an earlier version began the set,
        what that version compared.

    Raises:
        UserError: `out` was made from other files (names them as far as they are known).
    """
    recorded = recorded_provenance(out)
    if recorded is not None and "sources" not in recorded:
        return {**provenance, "inputs": _as_before(out, records, recorded, provenance)}
    before = read_notes(out)
    notes = _hashed(sorted({str(path) for record in records for path in _files(record)}), before)
    made = {"files": len(notes), "sha256": _digest(records, notes)}
    whole = {**provenance, "sources": made}
    if recorded is not None and not _agrees(recorded, provenance):
        return whole  # made with other parameters, which are named where all are compared
    if recorded is not None and recorded["sources"] != made:
        raise UserError(f"{out}: made from other files: {_changed(notes, before)}. Compared are "
                        f"{COMPARED}", fix="write to a new folder, or delete this one first")
    if notes != before:
        _write_notes(out, notes)
    return whole


def _agrees(recorded: dict[str, Any], provenance: dict[str, Any]) -> bool:
    return to_json({key: recorded.get(key) for key in provenance}) == to_json(provenance)


def unchanged(out: Path, recorded: dict[str, Any], folder: Path) -> bool:
    """Whether all source files lie in a folder and have the size and times that were noted.

    Args:
        out: folder of the set.
        recorded: provenance of the set.
        folder: of the source files.

    Returns:
        True if so, without reading a file; False if their content has to be compared.
    """
    notes, root = read_notes(out), os.path.abspath(folder)
    return len(notes) == recorded.get("sources", {}).get("files") and all(
        os.path.abspath(path).startswith(os.path.join(root, "")) and _stat(path) == note.stat
        for path, note in notes.items())


def read_notes(out: Path) -> dict[str, Note]:
    """Read the notes of a set.

    Args:
        out: folder of the set.

    Returns:
        Notes by path. Damaged lines are left out: these files are just read again.
    """
    try:
        lines = (out / NOTES).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return {}
    notes = {}
    for line in lines:
        size, modified, changed, sha256, path = (line.split("\t", 4) + [""] * 5)[:5]
        if path and size.isdigit() and modified.lstrip("-").isdigit() and changed.isdigit():
            notes[path] = Note((int(size), int(modified), int(changed)), sha256)
    return notes


def _write_notes(out: Path, notes: dict[str, Note]) -> None:
    """Write the notes, without files changed just now: their times may miss a second change."""
    latest = (time.time() - _SETTLED) * 1e9
    lines = ["\t".join([*map(str, note.stat), note.sha256, path])
             for path, note in notes.items() if max(note.stat[1:]) < latest and "\n" not in path]
    write_atomic(out / NOTES, "\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))


def _files(record: Any) -> list[Path]:
    """Image and mask file of a record; annotations in one common file are compared by the tool."""
    mask = getattr(record.mask, "path", record.mask)
    return [record.image, *([mask] if isinstance(mask, Path) else [])]


def _hashed(paths: Sequence[str], before: dict[str, Note]) -> dict[str, Note]:
    """Make a note of every file; many threads read those that differ from their old note."""
    notes: dict[str, Note] = {}
    todo = []
    for path in paths:
        if path in before and _stat(path) == before[path].stat:
            notes[path] = before[path]
        else:
            todo.append(path)
    groups = [todo[start:start + _GROUP] for start in range(0, len(todo), _GROUP)]
    pool = ThreadPoolExecutor(min(16, 2 * usable_cores()))  # hashing and reading both leave Python
    try:
        with track(len(todo), "comparing files", "files", disable=not todo) as bar:
            for group, made in zip(groups, pool.map(_notes, groups), strict=True):
                notes.update(zip(group, made, strict=True))
                bar.advance(len(group))
    finally:
        pool.shutdown(cancel_futures=True)
    return {path: notes[path] for path in paths}


def _notes(paths: Iterable[str]) -> list[Note]:
    notes = []
    for path in paths:
        stat = _stat(path)  # first: a file that changes meanwhile is read again next time
        try:
            notes.append(Note(stat, sha256_file(Path(path))))
        except OSError as error:  # the conversion names it
            notes.append(Note(stat, f"unreadable ({error.strerror})"))
    return notes


def _stat(path: str) -> Stat:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(records: Sequence[Any], notes: dict[str, Note]) -> str:
    lines = []
    for record in records:
        known = [notes[str(path)] for path in _files(record)]
        about = "\t".join(f"{note.stat[0]} {note.sha256}" for note in known)
        lines.append(f"{record.id}\t{record.tags}\t{about}")
    return sha256_bytes("\n".join(lines).encode("utf-8"))


def _changed(notes: dict[str, Note], before: dict[str, Note]) -> str:
    """Names the files whose content has changed."""
    names = [path for path, note in notes.items()
             if path in before and before[path].sha256 != note.sha256]
    if not names:
        return "which ones is not known here"
    return first_few(names)


def _as_before(out: Path, records: Sequence[Any], recorded: dict[str, Any],
               provenance: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a set that an earlier version made or began: what that version compared."""
    say(f"{out}: begun by an earlier version, which noted no content of files; a file "
        "that was replaced by another of its size is not noticed here. To be sure, "
        "convert to a new folder.")
    old, inputs = recorded.get("inputs"), provenance.get("inputs", {})
    if not isinstance(old, dict) or "sha256" not in old:
        return inputs
    now = {**inputs, "sha256": _sizes_digest(records)}
    if old != now and _agrees(recorded, {**provenance, "inputs": old}):
        raise UserError(f"{out}: made from other files. Compared are ids, tags and sizes of files, "
                        "all that the earlier version noted",
                        fix="write to a new folder, or delete this one first")
    return now


def _sizes_digest(records: Sequence[Any]) -> str:
    """The digest of earlier versions: ids, tags and file sizes."""
    lines = []
    for record in records:
        mask = getattr(record.mask, "path", record.mask)
        about = mask.stat().st_size if isinstance(mask, Path) else "" if mask is None else mask
        lines.append(f"{record.id}\t{record.image.stat().st_size}\t{about}\t{record.tags}")
    return sha256_bytes("\n".join(lines).encode("utf-8"))
