"""The counting of a search: tasks for what is not known yet, over workers, into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from more import __version__
from more.data.shards.format import sha256_bytes, to_json
from more.data.shards.reader import ShardSet
from more.evaluation.routes import facts
from more.jobs.bookkeeping import DeadlyImages
from more.jobs.driver import Outcome, run_tasks
from more.jobs.executors import Choice
from more.progress import Tally, Tracker, console, track
from more.refinement.image import Refinement
from more.refinement.plan import shards_of
from more.tuning.count_store import CountStore
from more.tuning.count_task import CountReport, CountSpec
from more.tuning.grid import crf_groups
from more.tuning.sample import Sample

IMAGES_PER_TASK = 4


@dataclass(frozen=True)
class Counting:
    """The open sets, the folder, the sample, the points to count, and who counts them."""

    source: ShardSet
    images: ShardSet
    out: Path
    sample: Sample
    points: list[Refinement]
    choice: Choice
    count_function: Callable[[CountSpec], CountReport]
    progress: bool

    @property
    def digests(self) -> tuple[str, str]:
        """Content of seeds and images."""
        return self.source.manifest.digest, self.images.manifest.digest

    @property
    def keep_to_tags(self) -> bool:
        """Whether seeds must hold the image's tags only, as `more refine` decides it."""
        made = facts(self.source.manifest.provenance)
        return not (made.get("map") == "decoder" or made.get("tags") == "predicted")

    def context(self) -> dict[str, Any]:
        """What counts depend on besides the point and the image."""
        return {"version": __version__, "seeds": self.digests[0], "data": self.digests[1],
                "keep_to_tags": self.keep_to_tags}

    def request(self) -> str:
        """Digest of all that is to be counted."""
        return sha256_bytes(to_json([self.context(), self.sample.ids,
                                     [how.record() for how in self.points]]))

    def run(self, store: CountStore, name: str, workers: int | None,
            make_executor: Callable[[], Executor]) -> Tally:
        """Count what is not known yet of this rank's images; the tally is of images."""
        rank = self.choice.rank
        own = self.sample.rows[rank.number::rank.world]
        specs = self.plan(store, own, name)
        todo = sum(len(spec.ids) for spec in specs)
        groups = len(crf_groups(self.points))
        console.print(f"{len(self.points)} points need {groups} dense CRFs an image; "
                      f"{len(own)} images: {groups * len(own)} CRF runs, {todo} of them to do",
                      highlight=False)
        fresh = {image_id for spec in specs for image_id in spec.ids}
        failed: dict[str, str] = {}
        if specs:
            with self.choice.workers(workers, specs[0], make_executor) as found, \
                    track(todo, "tune", "CRF runs", disable=not self.progress) as bar:
                tasks = self._without(specs, failed, bar.advance)
                outcomes = run_tasks(self.count_function, tasks, found, DeadlyImages().revise)
                self._collect(outcomes, store, failed, bar)
        tally = Tally(rank.counted, len(fresh) - len(failed), len(own) - len(fresh))
        for image_id in sorted(failed):
            tally.fail(image_id, failed[image_id])
        return tally

    def plan(self, store: CountStore, own: Sequence[int], name: str) -> list[CountSpec]:
        """The tasks for what the store lacks: images that lack the same points go together.

        Args:
            store: what is known.
            own: rows of the seeds set to count.
            name: begins the names of the tasks.

        Returns:
            The tasks.
        """
        specs: list[CountSpec] = []
        seeds, data = (str(part.path.absolute()) for part in (self.source, self.images))
        for group in crf_groups(self.points):
            lacking: dict[tuple[Refinement, ...], list[int]] = {}
            for row in own:
                hows = tuple(how for how in group if not store.has(how, self.source.ids[row]))
                if hows:
                    lacking.setdefault(hows, []).append(row)
            for hows, rows in lacking.items():
                for start in range(0, len(rows), IMAGES_PER_TASK):
                    task = rows[start:start + IMAGES_PER_TASK]
                    specs.append(CountSpec(
                        seeds, data, self.digests, str(self.out), f"{name}-{len(specs):05d}",
                        tuple(self.source.ids[row] for row in task),
                        shards_of(self.source, self.images, task), hows, self.keep_to_tags))
        return specs

    def _collect(self, outcomes: Iterator[Outcome[CountSpec, CountReport]], store: CountStore,
                 failed: dict[str, str], bar: Tracker) -> None:
        """Keep what comes back; whatever ends this takes back the work that is still out."""
        with closing(outcomes):
            for outcome in outcomes:
                spec, report = outcome.task, outcome.result
                if report is None:
                    why = f"{type(outcome.error).__name__}: {outcome.error}"
                    report = CountReport({}, [(image_id, why) for image_id in spec.ids])
                store.add(spec.hows, report)
                for image_id, why in report.failures:
                    if image_id not in failed:
                        bar.note(f"failed: {image_id}: {why}")
                        failed[image_id] = why
                bar.advance(len(spec.ids))

    def _without(self, specs: Sequence[CountSpec], failed: dict[str, str],
                 skipped: Callable[[int], None]) -> Iterator[CountSpec]:
        """The tasks, less the images that have failed by the time a task is taken."""
        for spec in specs:
            ids = tuple(image_id for image_id in spec.ids if image_id not in failed)
            skipped(len(spec.ids) - len(ids))
            if ids:
                yield replace(spec, ids=ids)
