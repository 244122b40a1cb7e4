"""The rows of a shard while it is made, in any order, and the writing of its file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from more.data.shards.format import sidecar_path
from more.data.shards.manifest import ShardEntry
from more.data.shards.writer import ShardWriter
from more.jobs.bookkeeping import drop_failures, write_failures
from more.jobs.retry import again_path


class Rows:
    """Finished rows of a shard, made in any order and written in the order of its images.

    Args:
        ids: the images of the shard, in order.
        again: those to try again, where the shard is there without them; empty: all are made.
    """

    def __init__(self, ids: Sequence[str], again: Collection[str] = ()):
        self.ids, self.again = ids, frozenset(again)
        self.held: dict[str, tuple[tuple, dict[str, bytes]]] = {}

    def add(self, image_id: str, *values: Any, **payloads: bytes) -> None:
        """As `ShardWriter.add`."""
        self.held[image_id] = values, payloads

    def finish(self, shard: Path, kind: str, class_names: list[str], provenance: dict[str, Any],
               failures: list[tuple[str, str]]) -> ShardEntry | None:
        """Write the shard and forget the rows.

        With `again` the shard stays as it is: the new one, with the rows that the old one has, lies
        beside it (see `more.jobs.retry`), or none where no image succeeded.

        Args:
            shard: its file.
            kind: of the set.
            class_names: of the set.
            provenance: of the set.
            failures: id and reason of images without a row.

        Returns:
            The shard's entry; None where nothing was written.
        """
        path = shard
        if self.again:
            self.held = {name: row for name, row in self.held.items() if name in self.again}
            failures = [failure for failure in failures if failure[0] in self.again]
            if not self.held:
                return None
            path = again_path(shard)
            if len(self.again) < len(self.ids):
                for image_id, tags, size, payloads in copied_rows(shard, self.again):
                    self.add(image_id, tags, size, **payloads)
        writer = ShardWriter(path, kind, class_names, provenance)
        for image_id in self.ids:
            if image_id in self.held:
                values, payloads = self.held.pop(image_id)
                writer.add(image_id, *values, **payloads)
        return finish_shard(writer, path, failures)


def copied_rows(shard: Path, without: Collection[str]) -> Iterator[tuple]:
    """Rows of a finished shard for the new one: id, tags, size, and its payloads by name.

    Args:
        shard: its content was compared with its entry before.
        without: ids to leave out.

    Yields:
        One tuple a row.
    """
    with h5py.File(shard, "r", locking=False) as file:
        ids = [text.decode("utf-8") for text in file["ids"][:]]
        tags, sizes = file["tags"][:], file["sizes"][:].tolist()
        stored = {str(name): (file[f"{name}/offsets"][:].tolist(), file[f"{name}/bytes"][:])
                  for name in file.attrs["payloads"]}
    for row, image_id in enumerate(ids):
        if image_id not in without:
            yield image_id, tags[row], tuple(sizes[row]), {
                name: data[starts[row]:starts[row + 1]].tobytes()
                for name, (starts, data) in stored.items()}


def finish_shard(writer: ShardWriter, shard: Path,
                 failures: list[tuple[str, str]]) -> ShardEntry | None:
    """Write a shard, its failures before it, so that a kill cannot hide them.

    Args:
        writer: holds the rows.
        shard: its file.
        failures: id and reason of the images without a row.

    Returns:
        The shard's entry; None where it has no row.
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
