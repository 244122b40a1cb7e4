"""Refining over local processes: faults 23 to 28 of the promises (dask and ranks: their own)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from more.filtering.crf import CRFParams, available_engine
from more.refinement.image import Refinement
from more.refinement.refine import refine
from tests.refinement.sets import (
    CLASSES,
    FAST,
    INLINE,
    POISON,
    crashing_writer_shard,
    full_disk_shard,
    kill_the_worker_on,
    logged_shard,
    make_sets,
    poisoned_shard,
    shard_bytes,
)


def run(seeds: Path, data: Path, out: Path, **options):
    options = {"how": FAST, "workers": 2, "rows_per_shard": 3, "progress": False, **options}
    return refine(seeds, data, out, **options)


def test_masks_hold_only_background_and_the_tags_of_the_image(sets):
    seeds, _, out = sets
    masks = ShardSet(out, kind="masks", check="full")
    assert masks.ids == ShardSet(seeds).ids and not verify_set(out, decode=True)
    found = set()
    for row in range(len(masks)):
        allowed = {0, *(np.flatnonzero(masks.tags[row]) + 1)}
        assert set(np.unique(masks.mask(row))) <= allowed
        found |= set(np.unique(masks.mask(row)).tolist())
    assert found == set(range(len(CLASSES) + 1))


def test_no_tags_gives_all_background(sets):
    """Fault 28."""
    masks = ShardSet(sets[2])
    row = masks.index_of("image-00")
    assert not masks.tags[row].any() and not masks.mask(row).any()


def test_the_same_bytes_for_one_and_two_workers(sets, tmp_path):
    """Fault 27."""
    run(*sets[:2], tmp_path / "two")
    assert shard_bytes(tmp_path / "two") == shard_bytes(sets[2])


@pytest.mark.timeout(120)
def test_the_same_bytes_for_one_and_eight_workers(sets, tmp_path):
    """Fault 27, with a shard an image: all eight have work."""
    run(*sets[:2], tmp_path / "one", rows_per_shard=1, **INLINE)
    run(*sets[:2], tmp_path / "eight", rows_per_shard=1, workers=8)
    assert shard_bytes(tmp_path / "eight") == shard_bytes(tmp_path / "one")


def test_a_rerun_does_nothing(sets):
    """Fault 25."""
    seeds, data, out = sets
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    tally = run(seeds, data, out)
    assert (tally.done, tally.skipped, tally.exit_code) == (0, 12, 0)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("change", [
    {"how": Refinement(CRFParams(iterations=4))}, {"how": replace(FAST, ignore_below=0.5)},
    {"how": replace(FAST, engine="exact")}, {"rows_per_shard": 4}])
def test_a_rerun_with_other_parameters_is_refused(sets, change):
    """Fault 25."""
    before = shard_bytes(sets[2])
    with pytest.raises(UserError, match="other parameters"):
        run(*sets, **change)
    assert shard_bytes(sets[2]) == before


def test_a_lost_shard_is_made_again(sets, tmp_path):
    run(*sets[:2], tmp_path / "masks", **INLINE)
    (tmp_path / "masks" / "manifest.json").unlink()
    (tmp_path / "masks" / "shard-00001.h5").unlink()
    tally = run(*sets[:2], tmp_path / "masks", **INLINE)
    assert (tally.done, tally.skipped) == (3, 9)
    assert shard_bytes(tmp_path / "masks") == shard_bytes(sets[2])


@pytest.mark.timeout(60)
def test_a_killed_worker_costs_one_shard(sets, tmp_path):
    """Fault 23."""
    out = tmp_path / "masks"
    killed = kill_the_worker_on(out / "shard-00002.h5")
    tally = run(*sets[:2], out, shard_function=logged_shard)
    assert killed and (tally.done, tally.exit_code) == (12, 0)
    calls = sorted((tmp_path / "calls").read_text().split())
    assert calls == ["0", "1", "2", "2", "3"]
    assert shard_bytes(out) == shard_bytes(sets[2])


@pytest.mark.timeout(60)
def test_a_poison_image_is_reported_and_the_others_are_done(sets, tmp_path):
    """Fault 24."""
    seeds, data, one = sets
    out = tmp_path / "masks"
    tally = run(seeds, data, out, shard_function=poisoned_shard)
    assert tally.done == 11 and tally.exit_code == 1
    assert [name for name, _ in tally.failures] == [POISON] and "died" in tally.failures[0][1]
    masks, reference = ShardSet(out), ShardSet(one)
    assert [i for i in reference.ids if i not in masks.ids] == [POISON]
    for row, name in enumerate(masks.ids):
        assert masks.blob("mask", row) == reference.blob("mask", reference.index_of(name))
    listed = json.loads((out / "manifest.json").read_text())["extra"]["failures"]
    assert [name for name, _ in listed] == [POISON]
    # The cause is gone: only the image that is lacking is made.
    tally = run(seeds, data, out, **INLINE)
    assert (tally.done, tally.skipped, tally.exit_code) == (1, 11, 0)
    assert shard_bytes(out) == shard_bytes(one)


def test_a_damaged_image_is_reported_and_tried_again(tmp_path):
    seeds, data = make_sets(tmp_path, count=4, damage="image-02")
    for skipped in (0, 3):
        tally = run(seeds, data, tmp_path / "masks", rows_per_shard=2, **INLINE)
        assert tally.skipped == skipped and tally.exit_code == 1
        (name, why), = tally.failures
        assert name == "image-02" and "decoded" in why
        assert ShardSet(tmp_path / "masks").ids == ["image-00", "image-01", "image-03"]


@pytest.mark.timeout(60)
def test_a_crash_in_the_writer_fails_its_shard_alone(sets, tmp_path):
    """Fault 26: exit code 139, with half a file written."""
    out = tmp_path / "masks"
    tally = run(*sets[:2], out, shard_function=crashing_writer_shard)
    assert tally.done == 9 and tally.exit_code == 1
    assert [name for name, _ in tally.failures] == [f"image-{i:02d}" for i in (3, 4, 5)]
    assert all("died 3 times" in why for _, why in tally.failures)
    whole = {name for name in shard_bytes(sets[2]) if "1" not in name} - {"manifest.json"}
    assert set(shard_bytes(out)) == whole  # nothing of shard 1, not even under another name
    tally = run(*sets[:2], out, **INLINE)
    assert (tally.done, shard_bytes(out)) == (3, shard_bytes(sets[2]))


def test_a_full_disk_fails_its_shard_and_leaves_the_set_unfinished(sets, tmp_path):
    """Fault 26."""
    out = tmp_path / "masks"
    tally = run(*sets[:2], out, shard_function=full_disk_shard, **INLINE)
    assert tally.done == 9 and len(tally.failures) == 3 and tally.exit_code == 1
    assert all("No space left" in why for _, why in tally.failures)
    with pytest.raises(UserError, match="unfinished"):
        ShardSet(out)
    tally = run(*sets[:2], out, **INLINE)
    assert (tally.done, shard_bytes(out)) == (3, shard_bytes(sets[2]))


def test_a_seed_with_a_class_outside_the_tags_fails(tmp_path):
    from more.data.seeds import SeedItem, encode_seed
    from more.data.shards.format import shard_name
    from more.data.shards.manifest import write_manifest
    from more.data.shards.writer import ShardWriter

    seeds, data = make_sets(tmp_path, count=2)
    with ShardWriter(seeds / shard_name(0), "seeds", CLASSES) as writer:
        maps = np.full((1, 4, 4), 0.9, np.float16)
        writer.add("image-00", np.zeros(4), (60, 72), seed=encode_seed(SeedItem([3], maps)))
    for tags, failed in (("true", 1), ("predicted", 0)):
        write_manifest(seeds, "seeds", CLASSES, [writer.entry], {"map": "lam", "tags": tags})
        tally = run(seeds, data, tmp_path / tags, **INLINE)
        assert len(tally.failures) == failed and tally.done == 1 - failed
    assert ShardSet(tmp_path / "predicted").tags.tolist() == [[0, 0, 1, 0]]


def test_low_confidence_becomes_ignore_and_confidence_is_that_of_the_label(sets, tmp_path):
    from more.data.shards.codec import decode_mask

    run(*sets[:2], tmp_path / "masks", how=replace(FAST, ignore_below=0.8), **INLINE)
    masks, plain = ShardSet(tmp_path / "masks"), ShardSet(sets[2])
    left_out = 0
    for row in range(len(masks)):
        confidence = decode_mask(masks.blob("confidence", row), "confidence")
        label, ignored = masks.mask(row), masks.mask(row) == 255
        assert (label == plain.mask(row))[~ignored].all()
        assert (confidence[ignored] <= 204).all() and (confidence[~ignored] >= 204).all()
        left_out += ignored.sum()
    assert left_out > 0


def test_sets_that_do_not_belong_together_are_refused(sets, tmp_path):
    _, few = make_sets(tmp_path, count=3)
    with pytest.raises(UserError, match="lacks 9 of the 12 images"):
        run(sets[0], few, tmp_path / "masks")
    with pytest.raises(UserError, match="holds images, not seeds"):
        run(sets[1], sets[1], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_worker_imports_no_torch(sets):
    pytest.importorskip("pydensecrf", reason="without pydensecrf the worker's engine is torch")
    code = (
        "import sys, numpy as np\n"
        "from more.refinement.refine import refine\n"
        "from more.refinement.image import refine_item\n"
        "from more.data.seeds import SeedItem\n"
        "from more.refinement.image import Refinement\n"
        "item = SeedItem(np.array([2]), np.full((1, 3, 3), .7, np.float16))\n"
        "refine_item(np.zeros((8, 9, 3), np.uint8), item, Refinement())\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_engine_and_what_is_missing_is_announced(sets, tmp_path, monkeypatch, capsys):
    for module in ("pydensecrf.densecrf", "more.filtering.fast"):
        monkeypatch.setitem(sys.modules, module, None)
    available_engine.cache_clear()
    seeds, data = sets[:2]
    try:
        refine(seeds, data, tmp_path / "out", FAST, **INLINE)
    finally:
        available_engine.cache_clear()
    err = " ".join(capsys.readouterr().err.split())
    assert "dense CRF: engine lattice (numba cannot be imported" in err
    assert "pydensecrf cannot be imported" in err
    provenance = json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]
    assert provenance["engine"] == "lattice"
