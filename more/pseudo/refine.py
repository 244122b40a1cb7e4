"""Seeds → masks by dense CRF over worker processes.

A task is a run of consecutive rows of the seeds set and becomes one shard of the masks set. The
worker reads seeds and images itself; a shard gets its final name only when it is complete. So any
process may be killed at any moment and the same command finishes the job.

An image that fails (damaged bytes, wrong size, a crash in the native library) gets no row: it is
listed with the reason in the manifest's `extra.failures`, counted, and tried again by the next
run. If a whole shard fails (full disk), no manifest is written: the set is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from more import __version__
from more.data.shards.format import MANIFEST, remove_temporaries
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import finished_shards, write_manifest
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.filtering.crf import CRFParams, available_engine, resolve_engine
from more.progress import Tally, console, track
from more.pseudo.crumbs import Crumbs, read_failures
from more.pseudo.refine_shard import ShardReport, ShardSpec, refine_shard
from more.pseudo.workers import Outcome, local_executor, one_thread_each, run_tasks, usable_cores

ROWS_PER_SHARD = 64


def refine(seeds: Path, data: Path, out: Path, workers: int | None = None,
           params: CRFParams | None = None, engine: str = "auto",
           ignore_below: float | None = None, rows_per_shard: int = ROWS_PER_SHARD,
           make_executor: Callable[[], Executor] = local_executor,
           shard_function: Callable[[ShardSpec], ShardReport] = refine_shard,
           progress: bool = True) -> Tally:
    """Refine a set of seeds into a set of masks; the masks do not depend on the workers.

    Args:
        seeds: shard set of kind `seeds`.
        data: shard set of kind `images` that holds every image of the seeds.
        out: folder of the masks set; an unfinished one is continued.
        workers: processes; default: one per usable core.
        params: the CRF's parameters; default: the released ones.
        engine: "auto", "pydensecrf", "lattice" or "exact".
        ignore_below: pixels whose confidence is lower become 255; None keeps all.
        rows_per_shard: images of one task and of one shard of masks.
        make_executor: makes one worker; default: a local process.
        shard_function: what workers run on each shard.
        progress: show a progress line.

    Returns:
        Counts of images; its exit code is 1 if any failed.

    Raises:
        UserError: sets that do not belong together, impossible options, or masks in `out` that
            were made with other parameters.
    """
    _check_options(workers, ignore_below, rows_per_shard)
    source, images = _open_pair(Path(seeds), Path(data))
    out, params, workers = Path(out), params or CRFParams(), workers or usable_cores()
    specs = plan(source, images, out, params, announced_engine(engine), ignore_below,
                 rows_per_shard)
    tally = Tally("images")
    with folder_lock(out), one_thread_each():
        remove_temporaries(out)
        done = finished_shards(out, specs[0].provenance)
        todo = [spec for spec in specs if spec.path.name not in done or read_failures(spec.path)]
        tally.skip(len(source) - sum(spec.rows for spec in todo))
        if todo:
            (out / MANIFEST).unlink(missing_ok=True)  # it would describe shards that change
            outcomes = run_tasks(shard_function, todo, make_executor, min(workers, len(todo)),
                                 Crumbs().revise)
            _collect(outcomes, source, sum(spec.rows for spec in todo), tally, progress)
            remove_temporaries(out)  # of workers that died
        _finish(out, source, specs)
    return tally


def plan(source: ShardSet, images: ShardSet, out: Path, params: CRFParams, engine: str,
         ignore_below: float | None, rows_per_shard: int) -> list[ShardSpec]:
    """The shards of the masks set, a pure function of the inputs and parameters.

    Args:
        source, images: seeds and images.
        out: folder of the masks set.
        params, ignore_below, rows_per_shard: as in `refine`.
        engine: resolved, not "auto".
    """
    recorded = source.manifest.provenance
    made = {**recorded, **(recorded.get("parameters") or {})}
    digests = source.manifest.digest, images.manifest.digest
    provenance: dict[str, Any] = {
        "tool": "more refine", "version": __version__, "stage": "refine", "crf": asdict(params),
        "engine": engine, "ignore_below": ignore_below, "rows_per_shard": rows_per_shard,
        "seeds": recorded, "seeds_digest": digests[0], "data": digests[1],
    }
    free = made.get("map") == "decoder" or made.get("tags") == "predicted"
    return [ShardSpec(str(source.path), str(images.path), str(out), digests, number, start,
                      min(start + rows_per_shard, len(source)), params, engine, ignore_below,
                      not free, provenance)
            for number, start in enumerate(range(0, len(source), rows_per_shard))]


def _collect(outcomes: Iterable[Outcome[ShardSpec, ShardReport]], source: ShardSet, total: int,
             tally: Tally, progress: bool) -> None:
    """Count what comes back."""
    with track(total, "refine", disable=not progress) as bar:
        for outcome in outcomes:
            spec, report = outcome.task, outcome.result
            if report is None:
                why = f"{spec.path.name}: {type(outcome.error).__name__}: {outcome.error}"
                failures = [(image_id, why) for image_id in source.ids[spec.start:spec.stop]]
            else:
                failures = report.failures
            for image_id, why in failures:
                tally.fail(image_id, why)
                bar.note(f"failed: {image_id}: {why}")
            tally.ok(spec.rows - len(failures))
            bar.advance(spec.rows)


def _finish(out: Path, source: ShardSet, specs: list[ShardSpec]) -> None:
    """Write the manifest, unless it is there or a shard is not accounted for."""
    if (out / MANIFEST).is_file():
        return
    provenance = specs[0].provenance
    entries = finished_shards(out, provenance)
    failures = {spec.number: read_failures(spec.path) for spec in specs}
    rows = {spec.number: entries[spec.path.name].rows if spec.path.name in entries else 0
            for spec in specs}
    whole = all(rows[spec.number] + len(failures[spec.number]) == spec.rows for spec in specs)
    if whole and entries:
        listed = [[image_id, why] for number in failures for image_id, why in failures[number]]
        write_manifest(out, "masks", source.class_names, entries.values(), provenance,
                       {"failures": listed})


def _open_pair(seeds: Path, data: Path) -> tuple[ShardSet, ShardSet]:
    """Both sets, checked to belong together."""
    source = ShardSet(seeds, kind="seeds", check="full")
    images = ShardSet(data, kind="images", check="full")
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
    """The engine that serves; where it is not the usual one, say so and why."""
    resolved = resolve_engine(engine)
    if engine == "auto" and resolved != "pydensecrf":
        console.print(f"dense CRF: {available_engine()[1]}", highlight=False, markup=False)
    return resolved


def _check_options(workers: int | None, ignore_below: float | None, rows_per_shard: int) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers", fix="give 1 or more, or leave it out")
    if ignore_below is not None and not 0 <= ignore_below <= 1:
        raise UserError(f"ignore_below is {ignore_below}", fix="give a confidence from 0 to 1")
    if rows_per_shard < 1:
        raise UserError(f"{rows_per_shard} rows per shard", fix="give 1 or more")
