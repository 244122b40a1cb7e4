"""Stage one above frozen blocks (`model.frozen_blocks`), and stage two on top of it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.train.conftest import records
from tests.train.jobs import run_jobs
from tests.train.test_matrix import weights

FROZEN = ["model.frozen_blocks=1", "train.iterations=6", "data.augment=coco"]
SETTINGS = {"kept": FROZEN, "images": [*FROZEN, "tokens.gb=0"],
            "rate": [*FROZEN, "optim.lr=3e-3", "train.iterations=2"]}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "runs"
    run_jobs(tiny, folder, 1, SETTINGS)
    return folder


def terms(run):
    return [line["terms"] for line in records(run)]


def test_frozen_blocks_stay_and_all_others_are_trained(runs):
    slow, fast = weights(runs / "kept", 6), weights(runs / "rate", 2)
    same = {name for name, value in slow.items() if torch.equal(value, fast[name])}
    frozen = {name for name in slow if name.startswith(
        ("encoder.patch_embed.", "encoder.blocks.0.", "encoder.pos_embed", "encoder.prefix"))}
    assert len(frozen) == 16 and same == frozen


def test_tokens_of_both_directions_are_kept_and_give_the_same_training(runs):
    """But for the rounding of what is kept, which the decoder's steep start enlarges."""
    record, = (runs / "kept" / "tokens").glob("*/store.json")
    facts = json.loads(record.read_text())
    assert facts["rows"] == 48 and facts["shape"] == [2, 1 + 64, 32] and facts["frozen"] == 1
    assert not (runs / "images" / "tokens").exists()
    one, two = terms(runs / "kept"), terms(runs / "images")
    assert one != two and len(one) == len(two) == 6
    for name, value in one[0].items():
        assert value == pytest.approx(two[0][name], rel=1e-3, abs=1e-6), name
    for a, b in zip(one, two, strict=True):
        assert a["cls"] == pytest.approx(b["cls"], rel=2e-2)


def test_going_on_finds_the_tokens_and_ends_with_the_same_bits(tiny, runs, tmp_path):
    run = tmp_path / "again" / "kept"
    shutil.copytree(runs / "kept", run)
    shutil.rmtree(run / "checkpoints" / "step-000006")
    run_jobs(tiny, tmp_path / "again", 1, {"kept": FROZEN})
    assert "tokens of 48 views are there" in (run / "train.log").read_text()
    assert terms(run)[-3:] == terms(runs / "kept")[-3:]
    first, second = weights(runs / "kept", 6), weights(run, 6)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_ranks_give_the_losses_of_one(tiny, runs, tmp_path):
    run_jobs(tiny, tmp_path / "two", 2, {
        f"{name}-{stage}": [*SETTINGS[name], f"deepspeed.zero_stage={stage}"]
        for name, stage in (("kept", 1), ("images", 3))})
    for name, stage in (("kept", 1), ("images", 3)):
        for a, b in zip(terms(runs / name), terms(tmp_path / "two" / f"{name}-{stage}"),
                        strict=True):
            for key, value in a.items():
                assert b[key] == pytest.approx(value, rel=1e-4, abs=1e-7), (name, key)


def test_stage_two_keeps_what_was_frozen_and_the_class_tokens(tiny, runs, tmp_path):
    run_jobs(tiny, tmp_path / "two", 1, {"blocks": ["segment.blocks=3"], "all": [
        "segment.blocks=-1"]}, tiny["train"], runs / "kept")
    before = weights(runs / "kept", 6)
    changed = {name: {key for key, value in weights(tmp_path / "two" / name, 6).items()
                      if not torch.equal(value, before[key])} for name in ("blocks", "all")}
    assert not any(key.startswith(("encoder.patch", "encoder.blocks.0", "encoder.pos",
                                   "encoder.cls", "encoder.prefix")) for key in changed["blocks"])
    assert "encoder.blocks.1.mlp.fc1.weight" in changed["blocks"]
    assert {"encoder.cls_token", "encoder.patch_embed.proj.weight",
            "encoder.blocks.0.mlp.fc1.weight"} <= changed["all"]
    assert "encoder.prefix" not in changed["all"]
