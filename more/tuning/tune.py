"""Try thresholds and CRF parameters on a labelled sample, over the same workers as `more refine`.

A task is a few images at all points that share a CRF run. Its counts go to a file as soon as it
is finished, so that the same command, or another grid on the same sets, counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from more.data.shards.format import to_json, write_atomic
from more.errors import UserError
from more.evaluation.routes import describe_route, facts
from more.evaluation.score_sets import set_name
from more.jobs.driver import local_executor
from more.jobs.executors import choose
from more.progress import Tally
from more.refinement.image import Refinement
from more.refinement.plan import announced_engine, open_pair
from more.tuning.count_store import CountStore
from more.tuning.count_task import CountReport, CountSpec, count_task
from more.tuning.counting import Counting
from more.tuning.figures import compare, score_point
from more.tuning.grid import DEFAULT, DEFAULT_DECODER, Axis, grid_points, parse_grid
from more.tuning.heat_map import draw, parse_axes, picture_bytes
from more.tuning.rank_share import Share
from more.tuning.sample import choose_sample
from more.tuning.tune_result import TuneResult, ranking


@dataclass(frozen=True)
class Search:
    """What to try, and on which images.

    Attributes:
        grid: `key=v1,v2` texts; empty: a default grid.
        base: settings that the grid does not vary, and the point to compare with.
        images: size of the labelled sample.
        seed: of sample, draw and bootstrap.
        random: try this many points of the grid only; None: all.
        axes: two settings for the heat map, as `a,b`; None: the most influential ones.
        min_kept: points that label a smaller share of the pixels cannot be the best.
    """

    grid: tuple[str, ...] = ()
    base: Refinement = Refinement()
    images: int = 200
    seed: int = 0
    random: int | None = None
    axes: str | None = None
    min_kept: float = 0.9


def tune(seeds: Path, data: Path, out: Path, search: Search | None = None,
         workers: int | None = None, executor: str = "local",
         make_executor: Callable[[], Executor] = local_executor,
         count_function: Callable[[CountSpec], CountReport] = count_task,
         progress: bool = True,
         report: Callable[[TuneResult | None, Tally], None] | None = None
         ) -> tuple[TuneResult | None, Tally]:
    """Score every point of a grid on a sample of labelled images.

    Writes `tune.json` and `tune.png` to `out`; what was counted stays in `counts*.jsonl`.

    Args:
        seeds: shard set of kind `seeds`.
        data: shard set of kind `images` with the images of the seeds and true masks.
        out: folder of the search; may hold earlier ones.
        search: what to try; default: a small grid around the released settings.
        workers: processes (of each rank); default: one per usable core, or all of the cluster.
            The figures do not depend on them.
        executor: "local", "ranks", or a dask scheduler, see `more.jobs.executors.choose`.
        make_executor: makes one worker of this machine; default: a process.
        count_function: what workers run on each task.
        progress: show a progress line (on rank 0).
        report: called with what is returned, before a rank of torchrun with failures waits for
            the others.

    Returns:
        The result, and counts of images (of this rank); the exit code is 1 if any failed. An
        image that fails at one point counts at none. With ranks, those that end before the last
        one return no result.

    Raises:
        UserError: sets that do not belong together, impossible options, no labelled image.
    """
    search = search or Search()
    _check_options(search, workers)
    choice, out = choose(executor), Path(out).absolute()
    source, images = open_pair(Path(seeds), Path(data), choice.rank)
    axes, points = _points(search, facts(source.manifest.provenance).get("map"))
    shown = parse_axes(search.axes, axes) if search.axes else None
    job = Counting(source, images, out, choose_sample(source, images, search.images, search.seed),
                   points, choice, count_function, progress and choice.rank.number == 0)
    share = Share(out, choice.rank, job.request())
    with share.writing() as departure:
        store = CountStore(out, job.context(), share.counts)
        tally = job.run(store, share.tasks, workers, make_executor)
        failures = share.through(tally.failures)
        result = None
        if failures is not None:
            store.reload()
            result = _result(job, store, search, axes, failures)
            write_atomic(out / "tune.json", to_json(result.to_json()))
            write_atomic(out / "tune.png", picture_bytes(draw(result, shown)))
        if report:
            report(result, tally)
        departure.through(bool(tally.failures))
    return result, tally


def _points(search: Search, kind: str | None) -> tuple[list[Axis], list[Refinement]]:
    """Axes and points, the reference among them; all of them possible for this kind of seeds."""
    base = replace(search.base, engine=announced_engine(search.base.engine))
    axes = parse_grid(search.grid or (DEFAULT_DECODER if kind == "decoder" else DEFAULT))
    points = list(dict.fromkeys([*grid_points(base, axes, search.random, search.seed), base]))
    for how in points:
        how.check_seeds(kind)
    return axes, points


def _result(job: Counting, store: CountStore, search: Search, axes: list[Axis],
            failures: list[tuple[str, str]]) -> TuneResult:
    lost = {image_id for image_id, _ in failures}
    ids = [image_id for image_id in job.sample.ids if image_id not in lost]
    if not ids:
        raise UserError(f"all {len(lost)} images failed; the first: {failures[0][1]}",
                        fix="mend the seeds or the images, then run the same command again")
    classes = ["background", *job.images.class_names]
    found = [score_point(store.counts(how, ids, len(classes))) for how in job.points]
    base = replace(search.base, engine=job.points[0].engine)
    reference = job.points.index(base)
    eligible = ranking(found, search.min_kept) or [reference]
    released = base == replace(Refinement(), engine=base.engine)
    seeds = job.source.manifest.provenance
    route = describe_route({**base.record(), "stage": "refine", "seeds": seeds})
    return TuneResult(
        name=set_name(job.source.path), route=route, axes=axes,
        random=search.random, seed=search.seed, points=job.points, scores=found,
        reference=reference, reference_name="released" if released else "configured",
        best=eligible[0], min_kept=search.min_kept,
        difference=compare(found, eligible[0], reference, sorted(eligible), search.seed),
        sample=job.sample, failed=failures, class_names=classes,
        provenance={"seeds": seeds, "seeds_digest": job.digests[0], "data": job.digests[1],
                    "engine": base.engine, "base": base.record()})


def _check_options(search: Search, workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers", fix="give 1 or more, or leave it out")
    if search.random is not None and search.random < 1:
        raise UserError(f"--random {search.random}", fix="give 1 or more, or leave it out")
    if not 0 <= search.min_kept <= 1:
        raise UserError(f"--min-kept {search.min_kept}", fix="give a share from 0 to 1")
    if search.seed < 0:
        raise UserError(f"--seed {search.seed}", fix="give 0 or more")
