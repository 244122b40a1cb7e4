"""One shard of seeds: images decoded ahead of the network, and what fails is left out by name."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from more.data.seeds import encode_seed
from more.data.shards.codec import decode_image
from more.data.shards.format import shard_name
from more.data.shards.reader import ShardSet
from more.inference.localizer import Localizer
from more.jobs.bookkeeping import failure_reason, reopen_shard
from more.jobs.rows import Rows

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item],
          depth: int) -> Iterator[tuple[Item, Future[Result]]]:
    """Run `function` on the items in the pool, at most `depth` ahead of the one that is yielded.

    Args:
        pool: does the work.
        function: of one item.
        items: taken lazily.
        depth: items that are under way at most.

    Yields:
        Each item with its future, in order.
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

    def write(self, shard: int, kinds: Sequence[str], again: dict[str, Collection[str]],
              advance: Callable[[int], None]) -> list[tuple[str, str]]:
        """Make a shard of some kinds anew, and try the failed images of others again.

        A second try leaves the shard as it is, see `Rows.finish`.

        Args:
            shard: its number, the same as of the images' shard.
            kinds: of maps, to make whole.
            again: ids of the images to try, by kind.
            advance: called with the number of images after each forward.

        Returns:
            id and reason of each image that failed: it has no row in any of the kinds.
        """
        for kind in kinds:
            reopen_shard(self.path(kind, shard))
        ids = [self.source.ids[row] for row in self.source.rows_of(shard)]
        made = {kind: Rows(ids, again.get(kind, ())) for kind in (*kinds, *again)}
        failures: list[tuple[str, str]] = []
        tried = self.tried(shard, kinds, again)
        for batch in self._batches(self.source.rows_of(shard), set(tried)):
            failures += self._add(batch, made)
            advance(sum(future is not None for _, future in batch))
        for kind, rows in made.items():
            rows.finish(self.path(kind, shard), "seeds", self.source.class_names,
                        self.provenance[kind], failures)
        return failures

    def tried(self, shard: int, kinds: Sequence[str],
              again: dict[str, Collection[str]]) -> list[int]:
        """Rows that `write` computes: all, or where no kind is made whole those that failed.

        Args:
            shard: its number.
            kinds: of maps, to make whole.
            again: ids of the images to try, by kind.

        Returns:
            Rows of the images.
        """
        wanted = {image_id for ids in again.values() for image_id in ids}
        return [row for row in self.source.rows_of(shard)
                if kinds or self.source.ids[row] in wanted]

    def _batches(self, rows: range, tried: Collection[int]
                 ) -> Iterator[list[tuple[int, Future[torch.Tensor] | None]]]:
        """Rows with their images, one batch being computed while the next is prepared.

        A row that is not tried has no image, but keeps its place: what a network makes of an
        image depends, in the last bits, on the number of images beside it and on its place.
        """
        size = self.localizer.request.batch or self.localizer.config.inference.batch
        batches = [batch for start in range(0, len(rows), size)
                   if set(batch := rows[start:start + size]) & set(tried)]
        lock = threading.Lock()  # the open files of the set are one thread's at a time

        def prepare(row: int) -> torch.Tensor:
            """Read and decode an image and make network input of it."""
            with lock:
                data = self.source.blob("image", row)
            name = f"{self.source.path}: {self.source.ids[row]!r}"
            return self.localizer.prepare(decode_image(data, name))

        wanted = (row for batch in batches for row in batch if row in tried)
        prepared = ahead(self.pool, prepare, wanted, 2 * size)
        for batch in batches:
            yield [(row, next(prepared)[1] if row in tried else None) for row in batch]

    def _add(self, batch: list[tuple[int, Future[torch.Tensor] | None]],
             made: dict[str, Rows]) -> list[tuple[str, str]]:
        """Add the rows of a batch; id and reason of those that failed.

        Images that failed, or are not tried, are black: see `_batches`.
        """
        failures, images = [], {}
        for row, future in batch:
            if future is None:
                continue
            try:
                images[row] = future.result()
            except Exception as error:  # recorded with its reason; the others go on
                failures.append((self.source.ids[row], failure_reason(error)))
        if not images:
            return failures
        rows = [row for row, _ in batch]
        black = torch.zeros_like(next(iter(images.values())))
        tags = torch.from_numpy(self.source.tags[rows])
        seeds = self.localizer(torch.stack([images.get(row, black) for row in rows]), tags)
        for row, items in zip(rows, seeds, strict=True):
            if row not in images:
                continue
            try:
                encoded = {kind: encode_seed(items[kind]) for kind in made}
            except ValueError as error:  # maps that are not finite
                failures.append((self.source.ids[row], failure_reason(error)))
                continue
            for kind, held in made.items():
                held.add(self.source.ids[row], self.source.tags[row],
                         tuple(self.source.sizes[row]), seed=encoded[kind])
        return failures
