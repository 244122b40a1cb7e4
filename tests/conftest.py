"""Settings that every test runs under: CPU, one thread per process, no build of C++ ops."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# What launchers and their users set. The tests are about these: they start without them.
LAUNCH_SETTINGS = ("RANKS", "RESTARTS", "PORT", "RDZV_ID", "SETTLE", "RANK", "WORLD_SIZE",
                   "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MORE_VENV",
                   "MORE_LAUNCH", "PYTHON")


def is_of_a_launcher(name: str) -> bool:
    """Whether an environment variable is a launcher's or chooses what launch/ starts."""
    return name in LAUNCH_SETTINGS or name.startswith(("SLURM_", "TORCHELASTIC_"))


os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

# Files that take longest: begun first, so that at the end no process works on one of them alone.
LONGEST = ("train/test_matrix.py", "faults/test_training.py", "train/test_training.py",
           "train/test_stage_two.py", "train/test_data_options.py", "faults/test_ranks.py",
           "faults/test_stage_two.py", "refinement/test_handover.py", "jobs/test_dask.py",
           "train/test_frozen_blocks.py", "plan/test_dry_run.py", "bench/test_bench.py",
           "export/test_training_folder.py", "bench/test_bench_refine.py",
           "command/test_run.py", "command/test_pages.py")


def pytest_configure() -> None:
    """Leave out what the user's launcher has set (here: ranks of a test import this file too)."""
    for variable in filter(is_of_a_launcher, list(os.environ)):
        del os.environ[variable]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others keep their order."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
