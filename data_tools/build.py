"""Writing a shard set with several processes, resumable. Every tool that writes a set uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_tools.tool import parallel
from more import __version__
from more.data.shards.format import MANIFEST, check_id, remove_temporaries, shard_name
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import ShardEntry, finished_shards, write_manifest
from more.data.shards.reader import shard_ids
from more.errors import UserError, from_system
from more.jobs.bookkeeping import DeadlyImages, clear_in_hand, note_in_hand
from more.progress import Tally, track


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard.

    Attributes:
        path: the shard.
        kind: of the set.
        class_names: of the set.
        provenance: of the set.
        rows: what the rows are made of, as the tool has them.
        options: for the function of the tool that writes the shard.
        skip: (id, reason) of rows not to touch because they killed workers.
        watched: whether the worker notes which row it is at. This begins after a worker died on the
            shard, since a note can take longer than an image.
    """

    path: Path
    kind: str
    class_names: list[str]
    provenance: dict[str, Any]
    rows: list[Any]
    options: Any
    skip: tuple[tuple[str, str], ...] = ()
    watched: bool = False

    def take(self, row_id: str | None) -> str | None:
        """Note which row comes next; call it before a row is touched, and at the end.

        Args:
            row_id: the row's id; None after the last one.

        Returns:
            Why the row must not be touched, or None if it may be.
        """
        reason = dict(self.skip).get(row_id)
        if self.watched and reason is None:
            clear_in_hand(self.path) if row_id is None else note_in_hand(self.path, row_id)
        return reason


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    Attributes:
        entry: for the manifest; None if the shard was not written.
        rows: number of rows written.
        bad: (id, reason) of images that cannot be converted.
        recoded: number of images stored in another format than they came in.
    """

    entry: ShardEntry | None
    rows: int
    bad: list[tuple[str, str]]
    recoded: int = 0


def automatic_shard_size(images: int) -> int:
    """Rows per shard: about 16 shards for small sets, 256 rows for large ones.

    A shard is the unit of parallel work later on, so a small set should still have several.
    """
    return min(max(images // 16, 32), 256)


RECODED = "stored as PNG, without loss, since not every reader knows their format"


class _Suspects(DeadlyImages):
    """As `DeadlyImages`, for shards that are watched only once a worker has died on them."""

    def revise(self, part: ShardJob) -> ShardJob:
        """What to try after a worker died on a shard."""
        return super().revise(part) if part.watched else replace(part, watched=True)


_HELD: set[Path] = set()  # folders that this process writes in


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold the lock of a folder, and remove what killed runs left there.

    It can be nested: a tool that first needs temporary files of its own in the folder takes the
    lock around them and `build_set`.

    Args:
        out: the folder; made when missing.

    Raises:
        UserError: another process writes there, or the folder cannot be made.
    """
    folder = out.resolve()
    if folder in _HELD:
        yield
        return
    with folder_lock(out):
        remove_temporaries(out)
        _HELD.add(folder)
        try:
            yield
        finally:
            _HELD.discard(folder)


def build_set(out: Path, kind: str, class_names: list[str], provenance: dict[str, Any],
              rows: Sequence[Any], write: Callable[[ShardJob], ShardResult], options: Any = None, *,
              shard_size: int = 0, workers: int = 0, extra: dict[str, Any] | None = None,
              left_out: Sequence[str] = ()) -> Tally:
    """Write `rows` as the shard set `out`; finished shards of an earlier run are kept.

    The manifest is written only when every shard is there. Files do not depend on the number of
    workers, on time or on interruptions.

    Args:
        out: folder of the set.
        kind: "images", "seeds" or "masks".
        class_names: foreground classes in order.
        provenance: tool, parameters, digests of the inputs; another one in `out` is refused.
        rows: what the rows are made of, each with an attribute `id`, in order.
        write: writes one shard; a function of a module (it travels to workers).
        options: handed on to `write`.
        shard_size: rows per shard, 0 = automatic.
        workers: processes, 0 = all cores.
        extra: further JSON values for the manifest.
        left_out: ids known beforehand to be missing, recorded with those that `write` leaves out.

    Returns:
        Counts of images.

    Raises:
        UserError: nothing to convert, bad or repeated ids, `out` busy or made otherwise, or the
            system refuses (a full disk, too many open files).
    """
    check_ids(row.id for row in rows)
    size = shard_size if shard_size > 0 else automatic_shard_size(len(rows))
    provenance = {**provenance, "version": __version__, "shard_size": size}
    tally = Tally("images")
    with sole_writer(out):
        entries = finished_shards(out, provenance)
        jobs = [ShardJob(out / shard_name(number), kind, class_names, provenance,
                         list(rows[start:start + size]), options)
                for number, start in enumerate(range(0, len(rows), size))]
        tally.skip(sum(len(job.rows) for job in jobs if job.path.name in entries))
        jobs = [job for job in jobs if job.path.name not in entries]
        _write(jobs, write, workers, entries, tally)
        if len(entries) == -(-len(rows) // size) and (jobs or not (out / MANIFEST).is_file()):
            stored = {image_id for file in entries for image_id in shard_ids(out / file)}
            absent = [*left_out, *(row.id for row in rows if row.id not in stored)]
            write_manifest(out, kind, class_names, entries.values(), provenance,
                           {**(extra or {}), "left_out": absent})
    return tally


def _write(jobs: list[ShardJob], write: Callable[[ShardJob], ShardResult], workers: int,
           entries: dict[str, ShardEntry], tally: Tally) -> None:
    """Run the workers; add what they finish to `entries` and the counts to `tally`."""
    with track(sum(len(job.rows) for job in jobs), "writing shards",
               disable=not jobs) as bar:
        for job, result in parallel(write, jobs, workers, _Suspects().revise):
            bar.advance(len(job.rows))
            if isinstance(result, OSError):
                raise _of_all_shards(result)
            if isinstance(result, BaseException):
                tally.fail(job.path.name, getattr(result, "message", None) or repr(result))
                continue
            for name, why in result.bad:
                if result.entry is None:
                    tally.fail(name, why)
                else:  # left out on request, recorded in the manifest
                    tally.skip()
                    bar.note(f"left out {name}: {why}")
            if result.entry is None and result.bad:
                bar.note(f"{job.path.name} is not written, its {len(job.rows)} images wait: "
                         "replace the bad ones, or leave them out with --skip-bad")
            tally.ok(result.rows)
            tally.note(RECODED, result.recoded)
            if result.entry is not None:
                entries[result.entry.file] = result.entry


def _of_all_shards(error: OSError) -> UserError:
    """The error for a full disk and the like, which the next shard would meet as well."""
    place = f"{error.filename}: " if error.filename else ""
    return from_system(error) or UserError(
        f"{place}{error.strerror or error}",
        fix="mend that, then run the same command again: it keeps the shards that are finished")


def check_ids(ids: Iterable[str]) -> None:
    """Raise UserError for an empty list, ids that cannot be file names, and ids given twice."""
    seen: set[str] = set()
    for image_id in ids:
        check_id(image_id)
        if image_id in seen:
            raise UserError(f"id {image_id!r} comes twice in the list", fix="remove one of them")
        seen.add(image_id)
    if not seen:
        raise UserError("there is no image to convert", fix="check the list of images")
