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

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from more import __version__
from more.data.shards.format import make_folder, remove_temporaries
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.filtering.crf import available_engine, crf_devices, load_engine, resolve_engine
from more.jobs.driver import Outcome, local_executor, one_thread_each, run_tasks
from more.jobs.executors import Choice, choose
from more.jobs.in_hand import Crumbs
from more.jobs.ranks import Departure, Rank
from more.progress import Tally, console, track
from more.refine.mask_set import finish, reopen, sweep, unfinished
from more.refine.retry import swap
from more.refine.settings import Refinement
from more.refine.shard import ShardReport, ShardSpec, refine_shard
from more.refine.threshold import with_threshold
from more.refine.worker_memory import GB, free_memory, image_bytes, ranks_here, workers_that_fit

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
    _check_options(workers, rows_per_shard, batch)
    if device != "cpu" and executor != "local":
        raise UserError(f"device {device} with executor {executor}",
                        fix="take --executor local on the machine with the GPUs")
    how, choice, out = how or Refinement(), choose(executor), Path(out)
    rank = choice.rank
    source, images = open_pair(Path(seeds), Path(data), rank)
    how = with_threshold(how, source, progress and rank.number == 0)
    if how.chosen:
        console.print(f"threshold {how.threshold:g}, chosen by the values of the seeds",
                      highlight=False)
    if how.engine == "auto" and device != "cpu":
        how = replace(how, engine="lattice")
    how = replace(how, engine=announced_engine(how.engine))
    devices = crf_devices(how.engine, device)
    batch = batch or (1 if device == "cpu" else GPU_BATCH)
    workers = workers or (None if device == "cpu" else len(devices))
    specs = [replace(spec, device=devices[spec.number % len(devices)], batch=batch)
             for spec in plan(source, images, out, how, rows_per_shard)]
    tally = Tally(rank.counted)
    own = specs[rank.number::rank.world]
    with _writing(out, rank, own) as departure:
        swap([spec.path for spec in own], rank.alone)  # what a killed run left
        todo = unfinished(specs, own)
        tally.skip(sum(spec.rows for spec in own) - sum(len(spec.tried) for spec in todo))
        if todo:
            workers = fitting_workers(choice, workers, source, todo)
            with choice.crew(workers, todo[0], make_executor) as crew:
                reopen([spec for spec in todo if not spec.again])
                outcomes = run_tasks(shard_function, todo, crew, Crumbs().revise)
                _collect(outcomes, todo, tally, progress and rank.number == 0)
            swap([spec.path for spec in todo], rank.alone)
        finish(specs, source.class_names, rank.alone)
        if report:
            report(tally)
        departure.through(bool(tally.failures))
    return tally


@contextmanager
def _writing(out: Path, rank: Rank, own: list[ShardSpec]) -> Iterator[Departure]:
    """The writer's place in the folder, or in its own shards, without what killed writers left."""
    if not rank.alone:
        make_folder(out)
        sweep(own)
        with one_thread_each():
            yield Departure(out, rank)
        sweep(own)
        return
    with folder_lock(out), one_thread_each():
        remove_temporaries(out)
        yield Departure(out, rank)
        remove_temporaries(out)  # of workers that died


def plan(source: ShardSet, images: ShardSet, out: Path, how: Refinement,
         rows_per_shard: int) -> list[ShardSpec]:
    """The shards of the masks set, a pure function of the inputs and parameters.

    Args:
        source, images: seeds and images.
        out: folder of the masks set.
        how: with its engine resolved, not "auto".
        rows_per_shard: as in `refine`.
    """
    recorded = source.manifest.provenance
    made = {**recorded, **(recorded.get("parameters") or {})}
    how.check_seeds(made.get("map"))
    digests = source.manifest.digest, images.manifest.digest
    provenance: dict[str, Any] = {
        "tool": "more refine", "version": __version__, "stage": "refine", **how.record(),
        "rows_per_shard": rows_per_shard,
        "seeds": recorded, "seeds_digest": digests[0], "data": digests[1],
    }
    decoder = made.get("map") == "decoder"
    free = made.get("tags") == "predicted" or (decoder and made.get("tags") != "true")
    folders = [str(Path(folder).absolute()) for folder in (source.path, images.path, out)]
    specs = []
    for number, start in enumerate(range(0, len(source), rows_per_shard)):
        rows = range(start, min(start + rows_per_shard, len(source)))
        specs.append(ShardSpec(*folders, digests, number, rows.start, rows.stop,
                               tuple(source.ids[rows.start:rows.stop]),
                               shards_of(source, images, rows), how, not free, provenance))
    return specs


def shards_of(source: ShardSet, images: ShardSet, rows: Sequence[int]
              ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the shards of seeds and of images that hold some rows of the seeds."""
    seeds = {source.locate(row)[0] for row in rows}
    data = {images.locate(images.index_of(source.ids[row]))[0] for row in rows}
    return tuple(sorted(seeds)), tuple(sorted(data))


def fitting_workers(choice: Choice, workers: int | None, source: ShardSet,
                    todo: list[ShardSpec]) -> int | None:
    """Workers of this machine as far as its memory goes; says so where they become fewer."""
    if choice.address or todo[0].device != "cpu":
        return workers
    how, wanted = todo[0].how, workers or choice.rank.cores
    rows = np.concatenate([np.arange(spec.start, spec.stop) for spec in todo])
    labels = 1 + (source.tags[rows].sum(1, dtype=np.int64) if todo[0].keep_to_tags
                  else np.full(len(rows), source.num_classes))
    pixels = source.sizes[rows].astype(np.int64).prod(1)
    if how.max_pixels:
        pixels = pixels.clip(max=how.max_pixels)
    needs = image_bytes(how.engine, pixels, labels)
    free = free_memory() / ranks_here()
    fit = workers_that_fit(how.engine, needs, wanted, free)
    if fit < wanted:
        console.print(f"{fit} of {wanted} workers: the largest images need up to "
                      f"{needs.max() / GB:.1f} GB in the CRF, {free / GB:.1f} GB are free "
                      "(--max-pixels reduces large images)", highlight=False)
    return fit


def _collect(outcomes: Iterator[Outcome[ShardSpec, ShardReport]], todo: list[ShardSpec],
             tally: Tally, progress: bool) -> None:
    """Count what comes back; whatever ends this takes back the work that is still out."""
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


def open_pair(seeds: Path, data: Path, rank: Rank) -> tuple[ShardSet, ShardSet]:
    """Both sets, checked to belong together; ranks share out the hashing of their files."""
    share = rank.number, rank.world
    source = ShardSet(seeds, kind="seeds", check="full", share=share)
    images = ShardSet(data, kind="images", check="full", share=share)
    if source.class_names != images.class_names:
        raise UserError(f"{seeds} has {source.num_classes} classes, {data} {images.num_classes}, "
                        "or they differ in name or order",
                        fix="give the image set that the seeds were made from")
    held = set(images.ids)
    strangers = [image_id for image_id in source.ids if image_id not in held]
    if strangers:
        raise UserError(f"{data} lacks {len(strangers)} of the {len(source)} images of {seeds}: "
                        f"{', '.join(strangers[:5])}",
                        fix="give the image set that the seeds were made from")
    return source, images


def announced_engine(engine: str) -> str:
    """The engine that serves, ready for work; where it was chosen here, say which and why."""
    resolved = resolve_engine(engine)
    if engine == "auto":
        console.print(f"dense CRF: engine {resolved} ({available_engine()[1]})", highlight=False,
                      markup=False)
    load_engine(resolved)
    return resolved


def _check_options(workers: int | None, rows_per_shard: int, batch: int) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers", fix="give 1 or more, or leave it out")
    if rows_per_shard < 1:
        raise UserError(f"{rows_per_shard} rows per shard", fix="give 1 or more")
    if batch < 0:
        raise UserError(f"batch of {batch}", fix="give 1 or more, or 0 for the usual one")
