"""Failed images of a finished set, tried again: what is computed, and a kill at any moment."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from more.inference import seed_shard
from more.inference.localize import localize
from more.inference.localizer import Localizer, Request
from more.jobs import retry
from more.refinement import mask_shard
from more.refinement.refine import refine
from tests.data.sets import small_set
from tests.inference.test_localize import make_run
from tests.refinement.sets import FAST, INLINE, shard_bytes


class Killed(BaseException):
    """The process is gone."""


class Work:
    """Makes a set with either tool; counts the images it works on, and fails on some."""

    def __init__(self, make, whole: Path, images: list[str]):
        self.make, self.whole, self.images = make, whole, images
        self.bad: set[str] = set()
        self.seen: Counter[str] = Counter()

    def look(self, name: str) -> None:
        """Called with an image before it is computed."""
        self.seen[name] += 1
        if name in self.bad:
            raise UserError(f"{name}: gone for now")

    def __call__(self, out: Path, *bad: str, **options):
        """Tally of a run in which some images fail."""
        self.bad = set(bad)
        self.seen.clear()
        return self.make(out, **options)


def refining(sets, monkeypatch) -> Work:
    seeds, data, whole = sets
    options = {"how": FAST, "rows_per_shard": 3, "progress": False, **INLINE}
    work = Work(partial(refine, seeds, data, **options), whole, ShardSet(seeds).ids)
    add = mask_shard._add_image

    def watched(rows, spec, source, images, row):
        work.look(source.ids[row])
        add(rows, spec, source, images, row)

    monkeypatch.setattr(mask_shard, "_add_image", watched)
    return work


def localizing(folder: Path, monkeypatch, tags: str = "true",
               maps: tuple[str, ...] = ("lam",)) -> Work:
    data, run = small_set(folder / "images"), make_run(folder / "run")

    def make(out: Path, **options):
        return localize(run, data, out, Request(maps, tags), **options)

    make(folder / "whole")
    work = Work(make, folder / "whole", ShardSet(data).ids)
    decode = seed_shard.decode_image

    def watched(content, name):
        work.look(name.rsplit("'")[-2])
        return decode(content, name)

    monkeypatch.setattr(seed_shard, "decode_image", watched)
    return work


@pytest.fixture(params=["refine", "localize"])
def work(request, tmp_path_factory, monkeypatch) -> Work:
    if request.param == "refine":
        return refining(request.getfixturevalue("sets"), monkeypatch)
    return localizing(tmp_path_factory.mktemp("localize"), monkeypatch)


def test_only_failed_images_are_tried_again(work, tmp_path):
    """And what comes out is, byte for byte, the set of a run in which none failed."""
    out, (one, two, three) = tmp_path / "out", (work.images[place] for place in (4, 5, 9))
    tally = work(out, one, two, three)
    assert (tally.done, len(tally.failures)) == (len(work.images) - 3, 3)
    tally = work(out, two)
    assert work.seen == {one: 1, two: 1, three: 1}
    assert (tally.done, tally.skipped) == (2, len(work.images) - 3)
    assert [name for name, _ in tally.failures] == [two] and tally.exit_code == 1
    assert ShardSet(out, check="full").ids == [name for name in work.images if name != two]
    assert [name for name, _ in read_manifest(out).extra["failures"]] == [two]
    tally = work(out)
    assert work.seen == {two: 1}
    assert (tally.done, tally.skipped, tally.exit_code) == (1, len(work.images) - 1, 0)
    assert shard_bytes(out) == shard_bytes(work.whole)


def test_nothing_is_written_when_no_image_succeeds(work, tmp_path):
    bad = work.images[4], work.images[9]
    work(tmp_path, *bad)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    tally = work(tmp_path, *bad)
    assert work.seen == dict.fromkeys(bad, 1)
    assert (tally.done, len(tally.failures), tally.exit_code) == (0, 2, 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_shard_without_any_row_comes_in_later(work, tmp_path):
    shard = ShardSet(work.whole).rows_of(1)
    names = [work.images[row] for row in shard]
    work(tmp_path, *names)
    assert not (tmp_path / "shard-00001.h5").exists()
    assert work(tmp_path, names[0]).done == len(shard) - 1 and sum(work.seen.values()) == len(shard)
    work(tmp_path)
    assert shard_bytes(tmp_path) == shard_bytes(work.whole)


@pytest.mark.parametrize(("tags", "maps"), [("predicted", ("lam", "decoder")),
                                            ("true", ("cam", "fused"))])
def test_seeds_do_not_depend_on_failed_neighbours(tmp_path, monkeypatch, tags, maps):
    """A failed image keeps its place in the batch, so the others come out the same."""
    work, sizes = localizing(tmp_path, monkeypatch, tags, maps), []
    call = Localizer.__call__

    def counted(self, images, tags):
        sizes.append(len(images))
        return call(self, images, tags)

    monkeypatch.setattr(Localizer, "__call__", counted)
    work(tmp_path / "out", work.images[6])
    sizes.clear()
    assert work(tmp_path / "out").done == 1
    assert sizes == [4], "one batch, not the whole shard"
    for kind in maps:
        assert shard_bytes(tmp_path / "out" / kind) == shard_bytes(tmp_path / "whole" / kind)


def disk_that_ends(monkeypatch, folder: Path, after: int) -> list[str]:
    """After some changes of names in the folder, none succeeds: nothing is tidied up either.

    The list it returns fills with the changes.
    """
    done: list[str] = []

    def guarded(call, *arguments, **options):
        path = Path(os.fspath(arguments[-1]))
        if path.parent == folder and path.name != ".lock" and ".tmp.row" not in path.name:
            if len(done) >= after:
                raise Killed(path.name)
            done.append(path.name)
        return call(*arguments, **options)

    for name in ("replace", "link", "unlink"):
        monkeypatch.setattr(os, name, partial(guarded, getattr(os, name)))
    return done


@pytest.mark.timeout(120)
@pytest.mark.parametrize("still", [0, 1])
def test_a_kill_during_the_second_try_leaves_the_finished_set(work, tmp_path, monkeypatch, still):
    """Killed between any two changes on the disk: a finished set, old or new, then the same end.

    Also where an image of the shard fails still: it stays listed.
    """
    bad, *rest = (work.images[row] for row in ShardSet(work.whole).rows_of(1)[:1 + still])
    old, sizes = len(work.images) - 1 - still, []
    for after in range(100):
        out = tmp_path / str(after)
        work(out, bad, *rest)
        with monkeypatch.context() as patch:
            changes = disk_that_ends(patch, out, after)
            try:
                ended = work(out, *rest).done == 1
            except Killed:
                ended = False
        found = ShardSet(out, check="full")
        assert not verify_set(out, decode=True), f"after {changes}"
        listed = [name for name, _ in read_manifest(out).extra["failures"]]
        assert set(found.ids) | set(listed) == set(work.images)
        assert (len(found), listed) in ((old, [bad, *rest]), (old + 1, rest))
        sizes.append(len(found))
        work(out)
        assert shard_bytes(out) == shard_bytes(work.whole)
        if ended:
            break
    assert ended and len(sizes) > 8 and sizes == sorted(sizes)


def test_a_reader_looks_again_when_a_shard_is_replaced_as_it_opens(work, tmp_path, monkeypatch):
    work(tmp_path, work.images[4])
    load, left = ShardSet._load, [work]

    def slow(self, entry, hashed):
        if left:
            left.pop()(tmp_path)
        return load(self, entry, hashed)

    monkeypatch.setattr(ShardSet, "_load", slow)
    assert ShardSet(tmp_path, check="full").ids == work.images


def test_ranks_swap_one_after_another(work, tmp_path, monkeypatch):
    """The manifest of each holds what the other did; a turn is waited for."""
    bad = work.images[4], work.images[9] if len(work.images) == 12 else work.images[11]
    work(tmp_path, *bad)
    name_in_manifest, waits = retry._name_in_manifest, []

    def held(folder, new):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        waits.append(len(new))
        name_in_manifest(folder, new)

    monkeypatch.setattr(retry, "_name_in_manifest", held)
    for rank in (1, 0):
        if work.make.__class__ is partial:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("MORE_RANKS", "1")
            work(tmp_path, executor="ranks")
        else:
            work(tmp_path, rank=rank, world=2)
        assert not verify_set(tmp_path)
    assert sum(waits) == 4 and shard_bytes(tmp_path) == shard_bytes(work.whole)


def test_a_rank_waits_for_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "WAIT", 0.2)
    with retry.manifest_turn(tmp_path, alone=False):
        with pytest.raises(UserError, match="writes here"):
            with retry.manifest_turn(tmp_path, alone=False):
                pass
    assert not list(tmp_path.iterdir())
