"""COCO at full size: time grows with the number of images and no faster, memory stays small.

    python -m tests.data_tools.test_coco_scale FOLDER [IMAGES …]
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from more.data.shards.manifest import read_manifest
from tests.data_tools.coco_layout import large_folder

SIZES = (30_000, 60_000, 120_000)  # the largest has what the official train2017 has
MOST_MB = 2000
SLOWER = 1.35  # time per image of the largest against the smallest


class Row(NamedTuple):
    """One measured conversion; `peak` is the memory of all its processes together, in MB."""

    images: int
    annotations: int
    json_mb: float
    seconds: float
    cpu_seconds: float
    peak: float


def measure(root: Path, images: int, workers: int = 2) -> Row:
    """Make a folder of `images` under `root`, convert it in processes of its own, remove it."""
    path, folder, annotations = large_folder(root, images)
    command = [sys.executable, "-m", "data_tools.coco", str(path), str(folder), str(root / "set"),
               "--workers", str(workers)]
    before, started, peak = _children_seconds(), time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, _memory(psutil.Process(process.pid)))
        time.sleep(0.1)
    seconds, cpu = time.monotonic() - started, _children_seconds() - before
    assert process.returncode == 0
    assert read_manifest(root / "set").rows == images
    size = path.stat().st_size
    shutil.rmtree(root)
    return Row(images, annotations, size / 1e6, seconds, cpu, peak / 1e6)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it; pages that they share count for each."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def table(root: Path, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Measure every size and print a row for each."""
    print("|  images | annotations | JSON MB | seconds | CPU seconds | images/s | peak MB |\n"
          "|---|---|---|---|---|---|---|")
    rows = []
    for images in sizes:
        rows.append(row := measure(root / str(images), images))
        print(f"| {row.images} | {row.annotations} | {row.json_mb:.0f} | {row.seconds:.1f} "
              f"| {row.cpu_seconds:.1f} | {row.images / row.seconds:.0f} | {row.peak:.0f} |",
              flush=True)
    return rows


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_time_is_linear_and_memory_small(tmp_path):
    rows = table(tmp_path)
    assert max(row.peak for row in rows) < MOST_MB
    per_image = [row.seconds / row.images for row in (rows[0], rows[-1])]
    assert per_image[1] <= SLOWER * per_image[0], per_image


if __name__ == "__main__":
    table(Path(sys.argv[1]), tuple(map(int, sys.argv[2:])) or SIZES)
