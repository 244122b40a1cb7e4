"""How many files one has to read to follow a training step or a pseudo-label (`modules`)."""

from __future__ import annotations

import json

import pytest

from tests.processes import run
from tests.research.modules_entered import entered

pytest.importorskip("numba")  # the usual filter of a CPU, for the dense energy and the CRF

# At most so many files; the numbers may only become smaller.
MOST = {"a training step": 25, "fetching its batch": 9,
        "reading its images, in loader processes": 8, "a pseudo-label": 19}


def test_a_step_and_a_label_enter_few_files(tiny):
    done = run("tests.research", "modules", tiny["train"], "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index('{\n "a training'):])
    assert {work: len(files) for work, files in found.items() if len(files) > MOST[work]} == {}
    # A count that misses a part would be low, too.
    assert {"train/trainer.py", "method/encoder.py", "method/losses/energy.py",
            "filtering/fast/passes.py"} <= set(found["a training step"])
    assert {"data/transforms.py", "data/shards/codec.py"} <= set(
        found["reading its images, in loader processes"])
    assert {"filtering/fast/iterations.py", "data/shards/writer.py", "data/seeds.py"} <= set(
        found["a pseudo-label"])


def test_files_count_once_and_compiled_calls_are_seen():
    from more.filtering.fast import iterations, lattice
    from more.filtering.fast.points import make_points

    assert entered(lambda: [make_points(3), make_points(3)]) == ["filtering/fast/points.py"]
    assert entered(lambda: iterations.place_kernel(2, 2, 1.0, 1.0)) == [
        "filtering/fast/iterations.py", "filtering/fast/passes.py"]
    assert entered(lambda: lattice._first_room(2, 2)) == [
        "filtering/fast/lattice.py", "filtering/fast/points.py"]
