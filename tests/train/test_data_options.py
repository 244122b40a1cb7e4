"""Options of the data section in whole runs: what they change, and what they must not."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.data.test_quarantine import damage
from tests.train.conftest import REAL, command, records


def run_with(tiny, out, *settings, train=None, launcher=()):
    options = [part for setting in settings for part in ("--set", setting)]
    return command("train", tiny["config"], "--train", train or tiny["train"], "--run", out,
                   "--set", "train.iterations=3", *options, launcher=launcher)


def terms(run):
    return [record["terms"] for record in records(run)]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("options") / "plain"
    assert run_with(tiny, run).returncode == 0
    return terms(run)


def test_workers_memory_and_cache_change_nothing(tiny, plain, tmp_path):
    done = run_with(tiny, tmp_path / "run", "data.workers=2", "data.prefetch_mb=1",
                    f"data.cache={tmp_path / 'local'}", launcher=REAL)
    assert done.returncode == 0, done.stderr
    assert terms(tmp_path / "run") == plain
    assert list((tmp_path / "local").glob("*.h5"))


@pytest.mark.parametrize("setting", ["data.order=shards", "data.pipeline=pil"])
def test_order_and_pipeline_change_the_numbers(tiny, plain, tmp_path, setting):
    done = run_with(tiny, tmp_path / "run", setting)
    assert done.returncode == 0, done.stderr
    found = terms(tmp_path / "run")
    assert found != plain and abs(found[0]["cls"] - plain[0]["cls"]) < 0.1


def test_damaged_images_stop_or_are_left_out_and_named(tiny, tmp_path):
    """Fault 16."""
    copy = tmp_path / "set"
    shutil.copytree(tiny["train"], copy)
    damage(copy, [5])
    stopped = run_with(tiny, tmp_path / "run", train=copy)
    assert stopped.returncode == 2 and "content changed" in stopped.stderr
    assert "Traceback" not in stopped.stderr and not (tmp_path / "run").exists()
    few = run_with(tiny, tmp_path / "run", "data.quarantine=0.01", train=copy)
    assert few.returncode == 2 and "1 of 24 images are damaged" in few.stderr
    done = run_with(tiny, tmp_path / "run", "data.quarantine=0.05", train=copy)
    assert done.returncode == 0, done.stderr
    assert "1 damaged images are left out" in done.stdout + done.stderr
    named = json.loads((tmp_path / "run/quarantine.json").read_text())
    assert len(named) == 1 and named[0]["row"] == 5 and named[0]["payload"] == "image"


def test_carry_and_refusals(tiny, tmp_path):
    done = run_with(tiny, tmp_path / "run", "data.last_batch=carry", "train.global_batch=10",
                    "train.iterations=4")
    assert done.returncode == 0, done.stderr
    for setting, text in (("data.order=none", "must be one of auto, global, shards"),
                          ("data.window=0", "must be at least 1"),
                          ("data.quarantine=2", "between 0 and 1")):
        refused = run_with(tiny, tmp_path / "no", setting)
        assert refused.returncode == 2 and text in refused.stderr, refused.stderr
