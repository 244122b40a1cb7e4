"""Several ranks on one search: each counts its images, the last one to end writes the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from more.data.shards.format import (
    TEMPORARY,
    is_temporary,
    make_folder,
    remove_temporaries,
    write_atomic,
)
from more.data.shards.lock import folder_lock
from more.jobs.driver import one_thread_each
from more.jobs.ranks import Departure, Rank


class Share:
    """A rank's part of a search: its files, and whether the others are through.

    Ranks meet only on the disk. A rank that is through leaves a file with the images that failed
    it; the file names the request, so that one of another search is not taken for it.

    Args:
        out: folder of the search.
        rank: this process.
        request: digest of what is asked for: sets, sample, points.
    """

    def __init__(self, out: Path, rank: Rank, request: str):
        self.out, self.rank, self.request = out, rank, request
        self.counts = "counts.jsonl" if rank.alone else f"counts-{self._name(rank.number)}.jsonl"
        self.tasks = f"task-{self._name(rank.number)}"

    @contextmanager
    def writing(self) -> Iterator[Departure]:
        """The writer's place in the folder, without what killed writers left there."""
        if self.rank.alone:
            with folder_lock(self.out), one_thread_each():
                remove_temporaries(self.out)
                yield Departure(self.out, self.rank)
                remove_temporaries(self.out)  # of workers that died
            return
        make_folder(self.out)
        self._file(self.rank.number).unlink(missing_ok=True)
        self._sweep()
        with one_thread_each():
            yield Departure(self.out, self.rank)
        self._sweep()

    def through(self, failures: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
        """This rank has counted its images.

        Args:
            failures: (id, reason) of those that failed.

        Returns:
            The failures of all ranks, by id, if every one is through, else None.
        """
        if self.rank.alone:
            return failures
        write_atomic(self._file(self.rank.number),
                     json.dumps([self.request, failures]).encode("utf-8"))
        found = [self._failures(number) for number in range(self.rank.world)]
        if any(part is None for part in found):
            return None
        return sorted((image_id, why) for part in found for image_id, why in part or ())

    def _failures(self, number: int) -> list[tuple[str, str]] | None:
        try:
            request, failures = json.loads(self._file(number).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return failures if request == self.request else None

    def _sweep(self) -> None:
        for path in self.out.glob(f"{self.tasks}-*{TEMPORARY}*"):
            if is_temporary(path.name):
                path.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.out / f"share-{self._name(number)}.json"

    def _name(self, number: int) -> str:
        return f"{number}-of-{self.rank.world}"
