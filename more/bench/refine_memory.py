"""Memory of a CRF worker. Imports no torch, as workers import none."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from more.bench.refine_rates import HOW, Pair, load_arrays
from more.bench.refine_sets import draw_sets
from more.bench.tables import Line
from more.filtering import crf
from more.jobs.driver import local_executor

ENGINES = ("pydensecrf", "fast")
MEMORY_SIZE, MEMORY_LABELS = (480, 640), 3


def memory_lines() -> list[Line]:
    """The most memory that a worker has taken after one picture of 480×640 with 3 labels."""
    lines = []
    with TemporaryDirectory(prefix="more-bench-") as folder:
        pair = draw_sets(Path(folder), 2, *MEMORY_SIZE)  # the second one has two classes
        for engine in ENGINES:
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
