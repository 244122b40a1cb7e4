"""Files of `more` that one training step enters: `python -m tests.research modules SET`."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import more
from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.train.distributed import setup, teardown
from more.train.means import Means
from more.train.telemetry import Meter
from more.train.trainer import Trainer

PACKAGE = Path(more.__file__).parent
RECIPE = Path("configs/shapes_micro.py")
EVERY_TERM = (
    "train.iterations=4", "train.global_batch=8", "train.threads=1", "data.workers=0",
    "loss.start.seg=-1", "loss.start.energy=-1", "loss.weights.seg=0.1",
    "loss.weights.energy=0.05", "cam.late_after=0", "model.decoder_width=16",
    "model.weights=none", "head_warmup.updates=0")


def entered(work: Callable[[], object]) -> list[str]:
    """The files of `more` whose functions are entered while `work` runs, in any thread."""
    files = set()

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
    paths = map(Path, files)
    return sorted(str(path.relative_to(PACKAGE)) for path in paths if PACKAGE in path.parents)


def step_files(data: Path) -> list[str]:
    """Files that an update of all terms enters, reading its images included.

    Args:
        data: shard set of the shapes (`python -m data_tools.shapes`), at least 8 images.
    """
    world = setup(1, 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(load_config(RECIPE, list(EVERY_TERM)), ShardSet(data), None,
                              Path(folder) / "run", world)
            means = Means(Meter(world.device), late=False)
            trainer.stage.mark = means.meter.phases.mark
            batches = iter(trainer.stage.batches(trainer.split, 0))
            trainer._step(0, batches, means)  # what the first update alone does
            found = entered(lambda: trainer._step(1, batches, means))
            trainer.records.close()
            return found
    finally:
        teardown()
