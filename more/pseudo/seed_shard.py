"""One shard of seeds: images decoded ahead of the network, and what fails is left out by name."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from more.data.shards.codec import decode_image
from more.data.shards.format import shard_name
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.pseudo.crumbs import failure_reason, finish_shard, reopen_shard
from more.pseudo.localizer import Localizer
from more.pseudo.seeds import encode_seed

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item],
          depth: int) -> Iterator[tuple[Item, Future[Result]]]:
    """Run `function` on the items in the pool, at most `depth` ahead of the one that is yielded.

    Yields:
        each item with its future, in order.
    """
    source = iter(items)
    waiting = deque((item, pool.submit(function, item)) for item in islice(source, depth))
    try:
        while waiting:
            item, future = waiting.popleft()
            waiting.extend((later, pool.submit(function, later)) for later in islice(source, 1))
            yield item, future
    finally:
        for _, future in waiting:
            future.cancel()


@dataclass(frozen=True)
class SeedShards:
    """Writes shards of seeds.

    Attributes:
        localizer: makes the maps.
        source: the images.
        folders, provenance: of the set of each map kind.
        pool: threads that read, decode and resize images (all of it outside Python's lock).
    """

    localizer: Localizer
    source: ShardSet
    folders: dict[str, Path]
    provenance: dict[str, dict[str, Any]]
    pool: Executor

    def path(self, kind: str, shard: int) -> Path:
        """File of a shard."""
        return self.folders[kind] / shard_name(shard)

    def write(self, shard: int, kinds: list[str],
              advance: Callable[[int], None]) -> list[tuple[str, str]]:
        """Make a shard of some kinds anew.

        Args:
            shard: its number, the same as of the images' shard.
            kinds: of maps.
            advance: called with the number of images after each forward.

        Returns:
            id and reason of each image that failed: it has no row in any of the kinds.
        """
        for kind in kinds:
            reopen_shard(self.path(kind, shard))
        writers = {kind: ShardWriter(self.path(kind, shard), "seeds", self.source.class_names,
                                     self.provenance[kind]) for kind in kinds}
        failures: list[tuple[str, str]] = []
        for batch in self._batches(self.source.rows_of(shard)):
            failures += self._add(batch, writers)
            advance(len(batch))
        for kind, writer in writers.items():
            finish_shard(writer, self.path(kind, shard), failures)
        return failures

    def _batches(self, rows: range) -> Iterator[list[tuple[int, Future[torch.Tensor]]]]:
        """Rows with their images, one batch being computed while the next is prepared."""
        size = self.localizer.request.batch or self.localizer.config.inference.batch
        lock = threading.Lock()  # the open files of the set are one thread's at a time

        def prepare(row: int) -> torch.Tensor:
            with lock:
                data = self.source.blob("image", row)
            name = f"{self.source.path}: {self.source.ids[row]!r}"
            return self.localizer.prepare(decode_image(data, name))

        prepared = ahead(self.pool, prepare, rows, 2 * size)
        while batch := list(islice(prepared, size)):
            yield batch

    def _add(self, batch: list[tuple[int, Future[torch.Tensor]]],
             writers: dict[str, ShardWriter]) -> list[tuple[str, str]]:
        """Append the rows of a batch; id and reason of those that failed."""
        failures, images = [], {}
        for row, future in batch:
            try:
                images[row] = future.result()
            except Exception as error:  # recorded with its reason; the others go on
                failures.append((self.source.ids[row], failure_reason(error)))
        if not images:
            return failures
        tags = torch.from_numpy(self.source.tags[list(images)])
        seeds = self.localizer(torch.stack(list(images.values())), tags)
        for row, items in zip(images, seeds, strict=True):
            try:
                encoded = {kind: encode_seed(items[kind]) for kind in writers}
            except ValueError as error:  # maps that are not finite
                failures.append((self.source.ids[row], failure_reason(error)))
                continue
            for kind, writer in writers.items():
                writer.add(self.source.ids[row], self.source.tags[row],
                           tuple(self.source.sizes[row]), seed=encoded[kind])
        return failures
