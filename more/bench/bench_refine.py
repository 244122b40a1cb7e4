"""`more bench refine`: engines and workers of the CRF, scaling, labels, memory, projections."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from more.bench.measure import Line, show_tables
from more.bench.refine_engines import engine_times, label_times
from more.bench.refine_projection import Measured, assumptions, project, read_cores, read_project
from more.bench.refine_scaling import scaling_times, startup_times
from more.bench.refine_sets import draw_sets, take_sets
from more.bench.refine_worker import load_arrays, memory_lines, path_times
from more.data.seeds import decode_seed
from more.data.shards.reader import ShardSet
from more.device import keep_freed_memory, usable_cores
from more.errors import UserError
from more.filtering.crf import resolve_engine
from more.jobs.driver import one_thread_each

PER_LABELLED = 12  # one image in so many is measured with every number of labels
DRAWN = (375, 500)


def bench_refine(pair: tuple[Path, Path], scratch: Path, *, workers: int, rounds: int,
                 projects: list[str], cores: str
                 ) -> tuple[dict[str, list[Line]], dict[str, Any], list[str]]:
    """Measure one small set.

    Args:
        pair: folders of seeds and images, every seed with a class.
        scratch: folder for masks.
        workers: processes at once.
        rounds: rounds that count.
        projects: as `read_project` takes them.
        cores: as `read_cores` takes them.

    Returns:
        Tables by title, facts about the run, and what the projection assumes.
    """
    wanted, counts = [read_project(text) for text in projects], read_cores(cores)
    engines = engine_times(pair, rounds)
    path, size = path_times(pair, scratch / "path", rounds)
    start = startup_times(workers, rounds)
    scaling = scaling_times(pair, scratch / "scaling", workers, rounds)
    arrays = load_arrays(pair)
    chosen = [item.image for item in arrays[:max(1, len(arrays) // PER_LABELLED)]]
    labels, subset = label_times(chosen, rounds)
    measured = [_measured(pair, size, scaling, labels, line, engines[-1])
                for line in engines[::-1]]
    tables = {"engines": engines, "path": path, "start-up": start, "scaling": scaling,
              "labels": labels, "subset": subset, "memory": memory_lines(),
              "projection": [{"engine": line["engine"], **found} for one in wanted
                             for line, which in zip(engines[::-1], measured, strict=True)
                             for found in project(one, which, counts)]}
    about = {"images": len(arrays), "labels per image": measured[0].labels,
             "pixels per image": measured[0].pixels, "workers": workers, "cores": usable_cores(),
             "rounds": rounds, "images of the table of labels": len(chosen)}
    return tables, about, assumptions(measured[0], workers)


def _measured(pair: tuple[Path, Path], size: int, scaling: list[Line], labels: list[Line],
              engine: Line, at_work: Line) -> Measured:
    """Rates of a worker with an engine, which takes longer than the one that was at work."""
    arrays, seeds = load_arrays(pair), ShardSet(pair[0])
    blobs = [seeds.blob("seed", row) for row in range(len(seeds))]
    maps = sum(len(decode_seed(blob).keys) for blob in blobs)
    return Measured(
        seconds=scaling[-1]["s per image of a worker"] + engine["CPU s per image"]
        - at_work["CPU s per image"],
        labels=sum(len(item.keys) for item in arrays) / len(arrays),
        pixels=sum(item.image.shape[0] * item.image.shape[1] for item in arrays) / len(arrays),
        curve={line["labels"]: line["CPU s per image"] for line in labels
               if line["engine"] == engine["engine"]},
        seed_bytes=sum(map(len, blobs)) / maps, mask_bytes=size / len(arrays))


def run(data: Path | None, seeds: Path | None, *, images: int = 24, workers: int = 0,
        rounds: int = 3, projects: list[str] | None = None, cores: str = "16,64",
        drawn: tuple[int, int] = DRAWN, as_json: bool = False) -> None:
    """Measure and print; everything written goes to a temporary folder.

    Args:
        data: shard set to take images from; None, with `seeds`, takes drawn pictures.
        seeds: shard set of these images' seeds.
        images: how many to take.
        workers: processes; 0: one for each usable core.
        rounds: rounds that count.
        projects: as `read_project` takes them; None takes all that are known.
        cores: as `read_cores` takes them.
        drawn: height and width of drawn pictures.
        as_json: print JSON.
    """
    if (data is None) != (seeds is None):
        raise UserError("only one of --data and --seeds",
                        fix="give both, or neither for drawn pictures")
    resolve_engine("pydensecrf")
    projects = projects or ["voc", "coco"]
    for text in projects:
        read_project(text)
    read_cores(cores)
    workers = workers or usable_cores()
    keep_freed_memory()  # as workers do
    with tempfile.TemporaryDirectory(prefix="more-bench-") as folder, one_thread_each():
        scratch = Path(folder)
        pair = take_sets(seeds, data, scratch, images) if seeds and data else draw_sets(
            scratch, images, *drawn)
        tables, about, notes = bench_refine(pair, scratch, workers=workers, rounds=rounds,
                                            projects=projects, cores=cores)
    source = {"pictures": "given" if seeds else "drawn"}
    show_tables("refine", tables, {**source, **about}, notes, as_json)
