"""The `--executor` option, what a dask worker does, and shards that are made again."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from dataclasses import replace

import pytest

from more.data.shards.manifest import read_manifest
from more.errors import UserError
from more.jobs.bookkeeping import failures_path, reopen_shard, write_failures
from more.jobs.dask_worker import LostWorker, look_around, mark_name, run_once
from more.jobs.executors import choose
from more.jobs.resume import accounted
from more.refinement.image import Refinement
from more.refinement.plan import open_pair, plan
from more.refinement.refine import refine, unfinished
from tests.refinement.sets import FAST, INLINE, make_sets, shard_bytes


def run(seeds, data, out, **options):
    options = {"how": FAST, "rows_per_shard": 3, "progress": False, **options}
    return refine(seeds, data, out, **options)


def test_a_submission_starts_once(tmp_path):
    """dask sends a task to the next worker after a death; the driver must know first."""
    mark = mark_name(str(tmp_path), "task")
    assert run_once(mark, str.upper, "a") == "A" and not list(tmp_path.iterdir())
    open(mark, "x").close()  # as a killed worker leaves it
    with pytest.raises(LostWorker) as caught:
        run_once(mark, str.upper, "a")
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), LostWorker)


@pytest.mark.parametrize(("change", "words"), [
    ({}, None), ({"seeds": "/elsewhere"}, "no such shard set"), ({"digests": ("0", "1")},
                                                                 "another set"),
    ({"how": Refinement(engine="pydensecrf")}, "pydensecrf cannot be imported")])
def test_a_worker_says_what_it_lacks(spec, tmp_path, monkeypatch, change, words):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    sign = tmp_path / "masks" / "sign"
    sign.touch()
    found = look_around(replace(spec, **change), str(sign))
    assert found is None if words is None else words in found[0] and found[1]
    assert [path.name for path in sign.parent.iterdir()] == ["sign"]
    sign.unlink()
    assert "does not see" in look_around(spec, str(sign))[0]


@pytest.mark.parametrize(("value", "address"), [
    ("local", None), ("dask://host:8786", "tcp://host:8786"), ("tcp://host:1", "tcp://host:1"),
    ("tls://host:1", "tls://host:1")])
def test_the_executor_option(value, address):
    choice = choose(value)
    assert choice.address == address and choice.rank.alone


def test_a_scheduler_file_or_a_refusal(tmp_path, sets):
    (tmp_path / "scheduler.json").touch()
    file = str(tmp_path / "scheduler.json")
    assert choose(file).address == file
    for value in ("dusk", "dask://", str(tmp_path / "none.json")):
        with pytest.raises(UserError, match="dask://HOST:PORT"):
            run(*sets[:2], tmp_path / "masks", executor=value)
    assert not (tmp_path / "masks").exists()


def test_a_shard_made_again_is_unfinished_until_then(sets, tmp_path):
    """A death in between must not leave a shard that lacks images and says nothing of it."""
    run(*sets[:2], tmp_path / "masks", **INLINE)
    engine = read_manifest(tmp_path / "masks").provenance["engine"]
    specs = plan(*open_pair(*sets[:2], choose("local").rank), tmp_path / "masks",
                 replace(FAST, engine=engine), 3)
    assert unfinished(specs, specs) == []
    assert all(accounted(spec.path, spec.rows) for spec in specs)
    write_failures(specs[1].path, [("image-03", "why")])
    assert unfinished(specs, specs) == [specs[1]] and not accounted(specs[1].path, specs[1].rows)
    reopen_shard(specs[1].path)
    assert unfinished(specs, specs) == [specs[1]] and not accounted(specs[1].path, specs[1].rows)
    assert not (tmp_path / "masks" / "manifest.json").exists()


def test_failures_are_on_disk_before_the_shard_that_lacks_them(tmp_path, monkeypatch):
    """A shard that lacks images and does not say so would pass for a whole one."""
    names, replace_file = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (
        names.append(os.path.basename(new)), replace_file(old, new)))
    seeds, data = make_sets(tmp_path, 3, rows=3, damage="image-01")
    names.clear()
    run(seeds, data, tmp_path / "masks", **INLINE)
    assert names == ["failures-shard-00000.json", "shard-00000.h5", "shard-00000.json",
                     "manifest.json"]


@pytest.mark.parametrize("killed_at", ["failures-shard-00000.json", "shard-00000.h5",
                                       "shard-00000.json", "manifest.json"])
def test_a_kill_between_failures_and_shard_leaves_a_set_that_ends(tmp_path, monkeypatch,
                                                                  killed_at):
    seeds, data = make_sets(tmp_path, 6, rows=3, damage="image-01")
    run(seeds, data, tmp_path / "whole", **INLINE)
    replace_file, dead = os.replace, []

    def killed(old, new):  # from then on no file gets its name
        if dead or os.path.basename(new) == killed_at:
            dead.append(new)
            raise KeyboardInterrupt
        replace_file(old, new)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        run(seeds, data, tmp_path / "masks", **INLINE)
    assert dead
    assert not (tmp_path / "masks" / "manifest.json").exists()
    assert [name for name, _ in run(seeds, data, tmp_path / "masks", **INLINE).failures] == \
        ["image-01"]
    assert shard_bytes(tmp_path / "masks") == shard_bytes(tmp_path / "whole")


def test_a_shard_without_its_list_of_failures_is_made_again(tmp_path):
    """Whatever took the list away: the shard has fewer rows than images, so it is not finished."""
    seeds, data = make_sets(tmp_path, 6, rows=3, damage="image-01")
    out = tmp_path / "masks"
    run(seeds, data, out, **INLINE)
    whole = shard_bytes(out)
    failures_path(out / "shard-00000.h5").unlink()
    (out / "manifest.json").unlink()
    tally = run(seeds, data, out, **INLINE)
    assert (tally.done, tally.skipped, len(tally.failures)) == (2, 3, 1)
    assert shard_bytes(out) == whole
