"""A CRF worker: its time against bare calls of the CRF, and its memory.

Imports no torch, as workers import none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from more.bench.measure import Line, alternate
from more.bench.refine_sets import draw_sets
from more.data.seeds import decode_seed, seed_probabilities
from more.data.shards.codec import decode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.filtering import crf
from more.jobs.driver import local_executor
from more.refinement.image import Refinement
from more.refinement.mask_shard import refine_shard
from more.refinement.plan import ShardSpec, plan

HOW = Refinement(engine="fast")
BLOCK = 8  # images between two looks at the clock
COMPARED = ("pydensecrf", "fast")  # engines
MEMORY_SIZE, MEMORY_LABELS = (480, 640), 3

Pair = tuple[Path, Path]  # folders of seeds and images


@dataclass(frozen=True)
class Spent:
    """Seconds of wall clock and of processor."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Arrays:
    """All that the CRF needs of one image, and the pixel values of its labels."""

    keys: np.ndarray
    probs: np.ndarray
    image: np.ndarray


def in_turn(candidates: Mapping[str, Callable[[], Spent]], rounds: int) -> dict[str, Spent]:
    """`alternate` for both clocks."""
    cpu: dict[str, list[float]] = {name: [] for name in candidates}

    def one(name: str) -> float:
        """Run a candidate, note its CPU time, return its wall time."""
        spent = candidates[name]()
        cpu[name].append(spent.cpu)
        return spent.wall

    wall = alternate({name: partial(one, name) for name in candidates}, rounds)
    return {name: Spent(wall[name], median(cpu[name][1:])) for name in candidates}


def spent(work: Callable[[], object]) -> Spent:
    """What one call takes in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


@lru_cache(maxsize=1)
def load_arrays(pair: Pair) -> list[Arrays]:
    """Images and probabilities of a small set, in memory."""
    seeds, images = ShardSet(pair[0]), ShardSet(pair[1])
    arrays = []
    for row in range(len(seeds)):
        image = images.image(images.index_of(seeds.ids[row]))
        keys, probs = seed_probabilities(decode_seed(seeds.blob("seed", row)), image.shape[:2])
        arrays.append(Arrays(keys, np.ascontiguousarray(probs, np.float32), image))
    return arrays


def bare(item: Arrays) -> np.ndarray:
    """The CRF alone: marginals [K, H, W]."""
    return crf.refine(item.image, item.probs, HOW.params, HOW.engine)


def make_specs(pair: Pair, out: Path, rows: int) -> list[ShardSpec]:
    """Tasks of workers for a small set, `rows` images each, that write into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return plan(ShardSet(pair[0]), ShardSet(pair[1]), out, HOW, rows)


def whole(spec: ShardSpec) -> None:
    """What a worker does with a task; every image must succeed."""
    report = refine_shard(spec)
    if report.failures:
        raise RuntimeError(f"{len(report.failures)} images failed: {report.failures[0]}")


def check_equal(pair: Pair, specs: list[ShardSpec]) -> int:
    """Masks that the workers wrote against bare calls; bytes of all masks and confidences.

    Raises:
        RuntimeError: they differ; then their times say nothing.
    """
    entries = [refine_shard(spec).entry for spec in specs]
    write_manifest(Path(specs[0].out), "masks", ShardSet(pair[0]).class_names, entries, {})
    masks, size = ShardSet(specs[0].out), 0
    for row, item in enumerate(load_arrays(pair)):
        q = bare(item)
        expected = {"mask": item.keys[q.argmax(0)],
                    "confidence": np.rint(q.max(0).clip(0, 1) * 255)}
        for name, array in expected.items():
            stored = masks.blob(name, row)
            size += len(stored)
            if not np.array_equal(decode_mask(stored, name), array):
                raise RuntimeError(f"{masks.ids[row]}: {name} is not what the bare CRF gives")
    return size


def path_times(pair: Pair, out: Path, rounds: int) -> tuple[list[Line], int]:
    """The whole way of an image through a worker against the bare call, in this process.

    The whole way is: read and check seed and JPEG, decode, upsample, CRF, label and confidence,
    PNG, write and read back the shard. Both take turns every `BLOCK` images.

    Returns:
        Lines of the table in seconds per image, and bytes of the masks.
    """
    cv2.setNumThreads(1)
    arrays, specs = load_arrays(pair), make_specs(pair, out, BLOCK)
    size = check_equal(pair, specs)
    candidates: dict[str, Callable[[], Spent]] = {}
    for spec in specs:
        own = arrays[spec.start:spec.stop]
        candidates[f"bare {spec.number}"] = partial(spent, partial(all_bare, own))
        candidates[f"whole {spec.number}"] = partial(spent, partial(whole, spec))
    found = in_turn(candidates, rounds)
    lines = []
    for kind, what in (("bare", "bare CRF"), ("whole", "whole path")):
        blocks = [found[f"{kind} {spec.number}"] for spec in specs]
        lines.append({"what": what,
                      "CPU s per image": sum(block.cpu for block in blocks) / len(arrays),
                      "wall s per image": sum(block.wall for block in blocks) / len(arrays)})
    for line in lines:
        line["CPU overhead %"], line["wall overhead %"] = (
            100 * (line[clock] / lines[0][clock] - 1) if line is not lines[0] else None
            for clock in ("CPU s per image", "wall s per image"))
    return lines, size


def all_bare(arrays: list[Arrays]) -> None:
    """Bare calls on a list of images."""
    for item in arrays:
        bare(item)


def memory_lines() -> list[Line]:
    """The most memory that a worker has taken after one picture of 480×640 with 3 labels."""
    lines = []
    with TemporaryDirectory(prefix="more-bench-") as folder:
        pair = draw_sets(Path(folder), 2, *MEMORY_SIZE)  # the second one has two classes
        for engine in COMPARED:
            with local_executor() as worker:
                lines.append({"engine": engine, "size": "×".join(map(str, MEMORY_SIZE)),
                              "labels": MEMORY_LABELS,
                              "worker, MB": worker.submit(_peak, pair, engine).result() / 1e6})
    return lines


def _peak(pair: Pair, engine: str) -> int:
    """Bytes of this process at its largest, after the set's last picture."""
    item = load_arrays(pair)[-1]
    crf.refine(item.image, item.probs, HOW.params, engine)
    # getrusage would count the process that started this one, which has torch.
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
