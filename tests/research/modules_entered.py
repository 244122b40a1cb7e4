"""Files of `more` that one unit of work enters: `python -m tests.research modules SET`.

Counted are files with a function that is called while the work runs, in a process that has done the
same before: what happens once in a run (opening files, compiling) is left out.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import more
from more.config.load import load_config
from more.data.batch_order import SampleKey
from more.data.loader import Batches
from more.data.seeds import SeedItem, encode_seed
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.jobs.ranks import Rank
from more.refinement.image import Refinement
from more.refinement.mask_shard import refine_shard
from more.refinement.plan import open_pair, plan
from more.train.distributed import setup, teardown
from more.train.meter import Means, Meter
from more.train.trainer import Trainer

PACKAGE = Path(more.__file__).parent
RECIPE = Path("configs/shapes_micro.py")
EVERY_TERM = (
    "train.iterations=9", "train.global_batch=8", "train.threads=1", "data.workers=1",
    "loss.start.seg=-1", "loss.start.energy=-1", "loss.weights.seg=0.1",
    "loss.weights.energy=0.05", "cam.late_after=0", "model.decoder_width=16",
    "model.weights=none", "head_warmup.updates=0")
STEPS = 4  # so many that fetching also asks for images that a later update needs


def all_files(data: Path) -> dict[str, list[str]]:
    """The files that each unit of work enters.

    Args:
        data: shard set of the shapes (`python -m data_tools.shapes`), at least 8 images.

    Returns:
        By the name of the work, see the functions below.
    """
    step, fetching, reading = step_files(data)
    return {"a training step": step, "fetching its batch": fetching,
            "reading its images, in loader processes": reading,
            "a pseudo-label": label_files(data)}


def entered(work: Callable[[], object]) -> list[str]:
    """The files of `more` whose functions are entered while `work` runs, in any thread.

    What compiled functions call no profile sees: a file counts, too, where one that is entered has
    a compiled function of it.
    """
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    paths = map(Path, files | _called_by_compiled(files))
    return sorted(str(path.relative_to(PACKAGE)) for path in paths if PACKAGE in path.parents)


def _called_by_compiled(files: set[str]) -> set[str]:
    """Files of the jitted functions that modules of these files name."""
    modules = [module for name, module in list(sys.modules.items())
               if name.startswith("more.") and module.__file__ in files]
    found = (getattr(value, "py_func", None) for module in modules
             for value in vars(module).values())
    return {function.__code__.co_filename for function in found if isfunction(function)}


def step_files(data: Path) -> tuple[list[str], list[str], list[str]]:
    """An update of all terms from a batch on the device to the new weights, what the training
    process does for the batch, and what its loader processes do for it.

    Args:
        data: shard set of the shapes, at least 8 images.

    Returns:
        The files of the three.
    """
    world = setup(1, 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(load_config(RECIPE, list(EVERY_TERM)), ShardSet(data), None,
                              Path(folder) / "run", world)
            means = Means(Meter(world.device), late=False)
            trainer.stage.mark = means.meter.phases.mark
            source = trainer.stage.batches(trainer.split, 0)
            batches = iter(source)
            trainer._step(0, batches, means)  # what the first update alone does
            ready = []
            fetching = entered(lambda: ready.extend(trainer._fetch(batches) for _ in range(STEPS)))
            step = entered(lambda: [trainer._update(1 + number, batch, means)
                                    for number, batch in enumerate(ready)])
            trainer.records.close()
            return step, fetching, entered(lambda: _read(source))
    finally:
        teardown()


def _read(batches: Batches) -> None:
    """Load two images as a loader process does."""
    loader = batches.loader
    loader.collate_fn([loader.dataset[SampleKey(row, row, 0, place=row)] for row in range(2)])


def label_files(data: Path) -> list[str]:
    """A shard with the pseudo-label of one image, by a worker of the usual CRF that has made one.

    Image and seed are read, refined, and the mask is written.

    Args:
        data: shard set of the shapes, at least 2 images.

    Returns:
        The files.
    """
    with tempfile.TemporaryDirectory() as folder:
        seeds, masks = Path(folder) / "seeds", Path(folder) / "masks"
        masks.mkdir()
        _write_seeds(ShardSet(data), seeds)
        how = Refinement(engine="fast")
        first, second = plan(*open_pair(seeds, data, Rank()), masks, how, 1)
        refine_shard(first)
        return entered(lambda: refine_shard(second))


def _write_seeds(images: ShardSet, folder: Path) -> None:
    """Seeds of two images that have tags, drawn."""
    folder.mkdir()
    drawn = np.random.default_rng(0)
    rows = [row for row in images if images.tags[row].any()][:2]
    with ShardWriter(folder / "shard-00000.h5", "seeds", images.class_names) as into:
        for row in rows:
            keys = np.flatnonzero(images.tags[row]) + 1
            item = SeedItem(keys, drawn.random((len(keys), 8, 8)).astype(np.float16))
            into.add(images.ids[row], images.tags[row], tuple(images.sizes[row]),
                     seed=encode_seed(item))
    write_manifest(folder, "seeds", images.class_names, [into.entry], {"map": "lam"})
