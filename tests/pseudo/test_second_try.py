"""Failed images of a finished set tried again: they alone, and the set stays finished meanwhile."""

from __future__ import annotations

import pytest

from more.data.shards import format as format_module
from more.data.shards.reader import ShardSet
from more.data.shards.verify import verify_set
from more.pseudo import refine_shard as module
from more.pseudo.refine import refine
from tests.pseudo.sets import FAST, INLINE, make_sets

FAILED = "image-02"


class Killed(BaseException):
    """Ends the job where a kill would."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Seeds, images, and the masks of a run in which nothing failed."""
    root = tmp_path_factory.mktemp("second")
    seeds, data = make_sets(root, count=7, size=(24, 30))
    run(seeds, data, root / "whole")
    return seeds, data, root / "whole"


def run(seeds, data, out):
    return refine(seeds, data, out, FAST, rows_per_shard=3, progress=False, **INLINE)


def failing(monkeypatch, names, made=None):
    """Refining these images raises; what is refined is noted in `made`."""
    true = module.decode_seed

    def flaky(content):
        held = ShardSet(failing.seeds)
        name = next(held.ids[row] for row in held if held.blob("seed", row) == content)
        if name in names:
            raise ValueError("gone for now")
        if made is not None:
            made.append(name)
        return true(content)
    monkeypatch.setattr(module, "decode_seed", flaky)


def files(folder):
    """Content of what a finished set consists of."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())
            if not path.name.startswith(".")}


def test_only_failed_images_are_tried_again(sets, tmp_path, monkeypatch):
    seeds, data, whole = sets
    failing.seeds, made = seeds, []
    with monkeypatch.context() as patch:
        failing(patch, [FAILED, "image-04"])
        assert run(seeds, data, tmp_path).exit_code == 1
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, [FAILED, "image-04"], made)
        tally = run(seeds, data, tmp_path)
        assert (tally.done, tally.skipped, len(tally.failures)) == (0, 5, 2) and not made
        assert files(tmp_path) == before  # nothing came of it, nothing was written
    with monkeypatch.context() as patch:
        failing(patch, ["image-04"], made)
        tally = run(seeds, data, tmp_path)
        assert (tally.done, tally.skipped, len(tally.failures)) == (1, 5, 1) and made == [FAILED]
    assert run(seeds, data, tmp_path).exit_code == 0
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_kill_during_the_second_try_leaves_the_finished_set(sets, tmp_path, monkeypatch, number):
    """Killed before the n-th file gets its name: readers find all that was done, and one run more
    makes the set as if nothing had ever failed."""
    seeds, data, whole = sets
    failing.seeds = seeds
    with monkeypatch.context() as patch:
        failing(patch, [FAILED])
        run(seeds, data, tmp_path)
    calls, true = [], format_module.os.replace
    with monkeypatch.context() as patch:
        def replace(*names):
            calls.append(names)
            if len(calls) >= number:
                raise Killed
            return true(*names)
        patch.setattr(format_module.os, "replace", replace)
        try:
            run(seeds, data, tmp_path)
        except Killed:
            pass
    assert verify_set(tmp_path, decode=True) == []
    opened = ShardSet(tmp_path, check="full")
    assert set(ShardSet(whole).ids) - set(opened.ids) <= {FAILED}
    for row, name in enumerate(opened.ids):
        assert opened.blob("mask", row) == ShardSet(whole).blob(
            "mask", ShardSet(whole).index_of(name))
    assert run(seeds, data, tmp_path).exit_code == 0
    assert files(tmp_path) == files(whole)
