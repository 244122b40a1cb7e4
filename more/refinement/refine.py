"""Seeds → masks by dense CRF over worker processes, on one machine or many.

A task is a run of consecutive rows of the seeds set and becomes one shard of the masks set. The
worker reads seeds and images itself; a shard gets its final name only when it is complete. So any
process may be killed at any moment and the same command finishes the job. The content of a shard
depends on its task alone, not on who does it or how often.

An image that fails (damaged bytes, wrong size, a crash in the native library) gets no row: it is
listed with the reason in the manifest's `extra.failures`, counted, and tried again by the next
run: it alone, and the finished set stays until the new shard takes its place. If a whole shard
fails (full disk), no manifest is written: the set is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from more.data.shards.format import make_folder, remove_temporaries
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.filtering.crf import crf_devices
from more.jobs.bookkeeping import DeadlyImages, reopen_shard
from more.jobs.driver import Workers, local_executor, one_thread_each, run_tasks
from more.jobs.executors import Choice, choose
from more.jobs.ranks import Departure, Rank
from more.jobs.resume import (
    PlannedSet,
    finish_set,
    finished_beside_others,
    images_to_try,
    sweep,
)
from more.jobs.retry import swap
from more.progress import Tally, console, track
from more.refinement.image import Refinement
from more.refinement.mask_shard import ShardReport, refine_shard
from more.refinement.plan import ShardSpec, announced_engine, open_pair, plan
from more.refinement.threshold import with_threshold
from more.refinement.worker_memory import announced_fit, image_bytes

ROWS_PER_SHARD = 64
GPU_BATCH = 8


def refine(seeds: Path, data: Path, out: Path, how: Refinement | None = None,
           workers: int | None = None,
           rows_per_shard: int = ROWS_PER_SHARD, executor: str = "local",
           device: str = "cpu", batch: int = 0,
           make_executor: Callable[[], Executor] = local_executor,
           shard_function: Callable[[ShardSpec], ShardReport] = refine_shard,
           progress: bool = True, report: Callable[[Tally], None] | None = None) -> Tally:
    """Refine a set of seeds into a set of masks; the masks do not depend on the workers.

    Args:
        seeds: shard set of kind `seeds`.
        data: shard set of kind `images` that holds every image of the seeds.
        out: folder of the masks set; an unfinished one is continued.
        how: the CRF and what becomes 255; default: the released values.
        workers: processes (of each rank); default: one per usable core, or all of the cluster.
        rows_per_shard: images of one task and of one shard of masks.
        device: "cpu", "cuda:N", or "cuda" for all GPUs of this machine, one worker each unless
            `workers` says otherwise; for the lattice only.
        batch: images that the lattice takes at a time; 0: 1 on the CPU, where more gain nothing,
            8 on a GPU.
        executor: "local", "ranks", or a dask scheduler, see `more.jobs.executors.choose`.
        make_executor: makes one worker of this machine; default: a process.
        shard_function: what workers run on each shard.
        progress: show a progress line (on rank 0).
        report: called with the counts once they are known; a rank of torchrun that has failures
            returns only when the other ranks are through.

    Returns:
        Counts of images of this process's share; its exit code is 1 if any failed.

    Raises:
        UserError: sets that do not belong together, impossible options, masks in `out` that
            were made with other parameters, or no workers to be had.
    """
    _check_options(workers, rows_per_shard, batch, device, executor)
    how, choice, out = how or Refinement(), choose(executor), Path(out)
    rank = choice.rank
    progress = progress and rank.number == 0
    source, images = open_pair(Path(seeds), Path(data), rank)
    how = _resolved(how, source, device, progress)
    devices = crf_devices(how.engine, device)
    workers = workers or (None if device == "cpu" else len(devices))
    specs = _placed(plan(source, images, out, how, rows_per_shard), devices,
                    batch or (1 if device == "cpu" else GPU_BATCH))
    tally = Tally(rank.counted)
    own = specs[rank.number::rank.world]
    with _writing(out, rank, own) as departure:
        swap([spec.path for spec in own], rank.alone)  # what a killed run left
        todo = unfinished(specs, own)
        tally.skip(sum(spec.rows for spec in own) - sum(len(spec.tried) for spec in todo))
        if todo:
            workers = fitting_workers(choice, workers, source, todo)
            with choice.workers(workers, todo[0], make_executor) as found:
                _make(shard_function, todo, found, tally, progress)
            swap([spec.path for spec in todo], rank.alone)
        finish_set(planned_set(specs, source.class_names), rank.alone)
        if report:
            report(tally)
        departure.through(bool(tally.failures))
    return tally


def _placed(specs: Iterable[ShardSpec], devices: Sequence[str], batch: int) -> list[ShardSpec]:
    """The shards, dealt out to the devices in turn."""
    return [replace(spec, device=devices[spec.number % len(devices)], batch=batch)
            for spec in specs]


@contextmanager
def _writing(out: Path, rank: Rank, own: list[ShardSpec]) -> Iterator[Departure]:
    """The writer's place in the folder, or in its own shards, without what killed writers left."""
    if not rank.alone:
        make_folder(out)
        sweep(spec.path for spec in own)
        with one_thread_each():
            yield Departure(out, rank)
        sweep(spec.path for spec in own)
        return
    with folder_lock(out), one_thread_each():
        remove_temporaries(out)
        yield Departure(out, rank)
        remove_temporaries(out)  # of workers that died


def unfinished(specs: Sequence[ShardSpec], own: Sequence[ShardSpec]) -> list[ShardSpec]:
    """The shards of `own` that are to be made: missing, damaged, or lacking images.

    Of a shard that lacks images only these are to be tried (`ShardSpec.again`).

    Args:
        specs: all shards of the set.
        own: those of this process.

    Returns:
        Their tasks.

    Raises:
        UserError: something in the folder was made with other parameters.
    """
    done = finished_beside_others(specs[0].out, specs[0].provenance)
    todo = []
    for spec in own:
        wanted = images_to_try(done.get(spec.path.name), spec.rows, spec.path)
        if wanted is None:
            todo.append(spec)
        elif wanted:
            todo.append(replace(spec, again=tuple(wanted)))
    return todo


def planned_set(specs: Sequence[ShardSpec], class_names: list[str]) -> PlannedSet:
    """The set of masks that these tasks, all of it, are to make."""
    return PlannedSet(Path(specs[0].out), "masks", class_names, specs[0].provenance,
                      [spec.rows for spec in specs], {})


def fitting_workers(choice: Choice, workers: int | None, source: ShardSet,
                    todo: list[ShardSpec]) -> int | None:
    """Workers of this machine as far as its memory goes; says so where they become fewer.

    Args:
        choice: the executor; on a cluster the number stays.
        workers: wanted; None: one for each core.
        source: the seeds.
        todo: the tasks.

    Returns:
        The number; None: the executor's own.
    """
    if choice.address or todo[0].device != "cpu":
        return workers
    how, wanted = todo[0].how, workers or choice.rank.cores
    rows = np.concatenate([np.arange(spec.start, spec.stop) for spec in todo])
    labels = 1 + (source.tags[rows].sum(1, dtype=np.int64) if todo[0].keep_to_tags
                  else np.full(len(rows), source.num_classes))
    pixels = source.sizes[rows].astype(np.int64).prod(1)
    if how.max_pixels:
        pixels = pixels.clip(max=how.max_pixels)
    return announced_fit(how.engine, image_bytes(how.engine, pixels, labels), wanted)


def _resolved(how: Refinement, source: ShardSet, device: str, progress: bool) -> Refinement:
    """The settings with a threshold and an engine in place of "auto"; says what was chosen."""
    how = with_threshold(how, source, progress)
    if how.chosen:
        console.print(f"threshold {how.threshold:g}, chosen by the values of the seeds",
                      highlight=False)
    if how.engine == "auto" and device != "cpu":
        how = replace(how, engine="lattice")
    return replace(how, engine=announced_engine(how.engine))


def _make(shard_function: Callable[[ShardSpec], ShardReport], todo: list[ShardSpec],
          workers: Workers, tally: Tally, progress: bool) -> None:
    """Make the shards and count; whatever ends this takes back the work that is still out."""
    for spec in todo:
        if not spec.again:
            reopen_shard(spec.path)
    outcomes = run_tasks(shard_function, todo, workers, DeadlyImages().revise)
    total = sum(len(spec.tried) for spec in todo)
    with closing(outcomes), track(total, "refine", disable=not progress) as bar:
        for outcome in outcomes:
            spec, report = outcome.task, outcome.result
            if report is None:
                why = f"{spec.path.name}: {type(outcome.error).__name__}: {outcome.error}"
                failures = [(image_id, why) for image_id in spec.tried]
            else:
                failures = report.failures
            for image_id, why in failures:
                tally.fail(image_id, why)
                bar.note(f"failed: {image_id}: {why}")
            tally.ok(len(spec.tried) - len(failures))
            bar.advance(len(spec.tried))


def _check_options(workers: int | None, rows_per_shard: int, batch: int, device: str,
                   executor: str) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers", fix="give 1 or more, or leave it out")
    if rows_per_shard < 1:
        raise UserError(f"{rows_per_shard} rows per shard", fix="give 1 or more")
    if batch < 0:
        raise UserError(f"batch of {batch}", fix="give 1 or more, or 0 for the usual one")
    if device != "cpu" and executor != "local":
        raise UserError(f"device {device} with executor {executor}",
                        fix="take --executor local on the machine with the GPUs")
