"""Small sets with true masks, threads as workers, and count functions that misbehave."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from more.data.seeds import decode_seed, seed_label
from more.data.shards.codec import encode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement
from more.tuning import count_task as module
from more.tuning.tune import Search
from tests.refinement.sets import POISON, make_sets

FAST = Refinement(CRFParams(iterations=2))
GRID = ("threshold=0.35,0.5", "crf.bilateral_rgb=3,20", "ignore_below=0,0.6")
ALL = Search(GRID, FAST, images=12)
# Where no process has to die, a thread does the work: no start-up time.
INLINE = {"make_executor": partial(ThreadPoolExecutor, 1), "workers": 1, "progress": False}


def labelled_sets(root: Path, count: int = 12, bare: tuple[str, ...] = (),
                  damage: str | None = None, seed: int = 0,
                  **provenance: str) -> tuple[Path, Path]:
    """Seeds, and images with true masks: the seeds at threshold 0.35, moved, with a rim of 255.

    `bare` names images without true mask, `damage` one whose stored bytes are no image.
    """
    seeds, plain = make_sets(root / "plain", count, seed=seed, damage=damage)
    source, images, data = ShardSet(seeds), ShardSet(plain), root / "data"
    data.mkdir()
    with ShardWriter(data / "shard-00000.h5", "images", images.class_names) as writer:
        for row, name in enumerate(images.ids):
            size = tuple(int(side) for side in images.sizes[row])
            truth = np.roll(seed_label(decode_seed(source.blob("seed", row)), size, 0.35), 3, 1)
            truth[:2] = 255
            writer.add(name, images.tags[row], size, image=images.blob("image", row),
                       mask=b"" if name in bare else encode_mask(truth))
    write_manifest(data, "images", images.class_names, [writer.entry], {})
    if provenance:
        write_manifest(seeds, "seeds", source.class_names, source.manifest.shards, provenance)
    return seeds, data


def logged_task(spec: module.CountSpec) -> module.CountReport:
    """`count_task` with a line per image in `calls` beside the output folder."""
    with open(spec.path.parent.parent / "calls", "a") as file:
        file.writelines(f"{row} {len(spec.hows)}\n" for row in spec.ids)
    return module.count_task(spec)


def slow_task(spec: module.CountSpec) -> module.CountReport:
    """`logged_task`, slowed down."""
    time.sleep(0.3)
    return logged_task(spec)


def poisoned_task(spec: module.CountSpec) -> module.CountReport:
    """`count_task` with a native library that crashes on one image; a line in `deaths` each time.
    """
    count = module._count_image

    def crash(spec, seeds, data, row):
        if seeds.ids[row] == POISON:
            with open(spec.path.parent.parent / "deaths", "a") as file:
                file.write("died\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        return count(spec, seeds, data, row)

    module._count_image = crash
    try:
        return module.count_task(spec)
    finally:
        module._count_image = count
