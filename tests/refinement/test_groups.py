"""Refining several images at a time: the same bytes, and only the bad image fails."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.filtering import crf
from more.filtering.crf import CRFParams, crf_devices
from more.jobs.bookkeeping import DeadlyImages, read_in_hand
from more.refinement import mask_shard as module
from more.refinement.image import Refinement
from more.refinement.mask_shard import groups
from more.refinement.plan import plan
from more.refinement.refine import refine
from tests.refinement.sets import make_sets, shard_bytes

LATTICE = Refinement(CRFParams(iterations=2), "lattice")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Seeds, data, and the masks of one image at a time."""
    root = tmp_path_factory.mktemp("groups")
    seeds, data = make_sets(root, count=24, size=(30, 36))
    run(seeds, data, root / "one", batch=1)
    return seeds, data, root / "one"


def run(seeds, data, out, **options):
    options = {"how": LATTICE, "rows_per_shard": 24, **options}
    return refine(seeds, data, out, workers=1, progress=False,
                  make_executor=partial(ThreadPoolExecutor, 1), **options)


def specs(sets, tmp_path, **changes):
    how = changes.pop("how", LATTICE)
    made = plan(ShardSet(sets[0]), ShardSet(sets[1]), tmp_path, how, 24)
    return [replace(spec, **changes) for spec in made]


@pytest.mark.parametrize("batch", [2, 3, 64])
def test_the_same_bytes_for_any_batch(sets, tmp_path, monkeypatch, batch):
    seeds, data, one = sets
    calls, true_batch = [], crf.refine_batch
    monkeypatch.setattr(crf, "refine_batch", lambda images, *rest: (
        calls.append(len(images)), true_batch(images, *rest))[1])
    assert run(seeds, data, tmp_path / "many", batch=batch).done == 24
    assert shard_bytes(tmp_path / "many") == shard_bytes(one)  # manifest and provenance as well
    assert 1 < max(calls) <= batch


def test_a_group_has_one_size_and_one_number_of_labels(sets, tmp_path):
    seeds, (spec,) = ShardSet(sets[0]), specs(sets, tmp_path, batch=3)
    found = groups(spec, seeds)
    assert sorted(row for group in found for row in group) == list(range(24))
    assert max(map(len, found)) > 1 and all(len(group) <= 3 for group in found)
    for group in found:
        assert group == sorted(group)
        assert len({(*seeds.sizes[row], int(seeds.tags[row].sum())) for row in group}) == 1


@pytest.mark.parametrize("change", [
    {"batch": 1}, {"batch": 8, "how": Refinement(CRFParams(), "pydensecrf")},
    {"batch": 8, "how": Refinement(CRFParams(), "exact")},
    {"batch": 8, "skip": (("image-03", "died"),)}])
def test_one_at_a_time_where_nothing_is_gained_or_a_culprit_is_sought(sets, tmp_path, change):
    (spec,) = specs(sets, tmp_path, **change)
    assert groups(spec, ShardSet(sets[0])) == [[row] for row in range(24)]


def test_a_damaged_image_fails_alone_and_its_group_is_done(tmp_path):
    seeds, data = make_sets(tmp_path, count=16, size=(30, 36), damage="image-03")
    tally = run(seeds, data, tmp_path / "masks", batch=8)
    (name, why), = tally.failures
    assert name == "image-03" and "decoded" in why and tally.done == 15
    run(seeds, data, tmp_path / "one", batch=1)
    assert shard_bytes(tmp_path / "masks") == shard_bytes(tmp_path / "one")


def test_a_batch_too_large_for_the_memory_is_done_one_by_one(sets, tmp_path, monkeypatch):
    true_batch = crf.refine_batch

    def small(images, *rest):
        if len(images) > 1:
            raise MemoryError("out of memory")
        return true_batch(images, *rest)

    monkeypatch.setattr(crf, "refine_batch", small)
    tally = run(*sets[:2], tmp_path / "masks", batch=8)
    assert (tally.done, tally.failures) == (24, [])
    assert shard_bytes(tmp_path / "masks") == shard_bytes(sets[2])


def test_the_image_in_hand_is_named_and_found_after_two_deaths(sets, tmp_path, monkeypatch):
    """A group names its first image; once that is left out, images go one by one."""
    seeds, path = ShardSet(sets[0]), tmp_path / "masks"
    path.mkdir()
    spec = replace(plan(seeds, ShardSet(sets[1]), path, LATTICE, 24)[0], batch=8)
    group = next(group for group in groups(spec, seeds) if len(group) > 1)
    true, deadly, first, culprit = module._add_images, DeadlyImages(), *(
        seeds.ids[row] for row in (group[0], group[-1]))

    def die(rows, spec, seeds, data, group):
        if culprit in [seeds.ids[row] for row in group]:
            raise KeyboardInterrupt  # no worker process: what is left on disk counts
        true(rows, spec, seeds, data, group)

    monkeypatch.setattr(module, "_add_images", die)
    named = []
    while True:
        try:
            report = module.refine_shard(spec)
            break
        except KeyboardInterrupt:
            named.append(read_in_hand(spec.path)[1])
            spec = deadly.revise(spec)
    assert named == [first, first, culprit, culprit]
    assert [name for name, _ in report.failures] == sorted([first, culprit])
    assert report.entry.rows == 22


@pytest.mark.parametrize(("engine", "device", "message"), [
    ("pydensecrf", "cuda", "pydensecrf does not run on cuda"),
    ("lattice", "cuda:99", "sees . CUDA devices"), ("lattice", "gpu", "unknown device"),
    ("lattice", "cuda:", "unknown device"), ("exact", "cuda:x", "unknown device")])
def test_devices_that_cannot_serve_are_refused_before_any_work(sets, tmp_path, engine, device,
                                                                message):
    if engine == "pydensecrf":
        pytest.importorskip("pydensecrf")
    with pytest.raises(UserError, match=message):
        run(*sets[:2], tmp_path / "masks", how=Refinement(CRFParams(), engine), device=device)
    assert not (tmp_path / "masks").exists()


def test_devices_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(
        cuda=SimpleNamespace(device_count=lambda: 2)))
    assert crf_devices("pydensecrf", "cpu") == ["cpu"]
    assert crf_devices("lattice", "cuda") == ["cuda:0", "cuda:1"]
    assert crf_devices("lattice", "cuda:1") == ["cuda:1"]
    with pytest.raises(UserError, match="sees 2"):
        crf_devices("lattice", "cuda:2")


def test_gpus_take_turns_and_a_cluster_takes_none(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("more.refinement.refine.crf_devices", lambda *_: ["cuda:0", "cuda:1"])
    seen = []

    def note(spec):
        seen.append((spec.number, spec.device, spec.batch))
        return module.ShardReport(None, [])

    run(*sets[:2], tmp_path / "masks", device="cuda", rows_per_shard=9, shard_function=note)
    assert sorted(seen) == [(0, "cuda:0", 8), (1, "cuda:1", 8), (2, "cuda:0", 8)]
    with pytest.raises(UserError, match="executor ranks"):
        run(*sets[:2], tmp_path / "other", device="cuda", executor="ranks")
