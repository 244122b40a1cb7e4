"""Shard sets joined and split: payloads byte for byte, provenance, extras."""

from __future__ import annotations

import pytest

from data_tools import split as splitting
from data_tools.merge import merge
from data_tools.split import split
from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.data.split_parts import parse_parts
from more.evaluation.routes import describe_route, seed_facts
from more.refinement.refine import refine
from tests.data_tools.random_sets import ROUTE, a_set, content, ids
from tests.refinement.sets import make_sets


@pytest.mark.parametrize("kind", ["images", "seeds", "masks"])
def test_merge_and_split_copy_every_kind(tmp_path, kind):
    one = a_set(tmp_path / "one", ids("b", 9), kind)
    two = a_set(tmp_path / "two", ids("a", 6), kind)
    assert merge(tmp_path / "all", [one, two], shard_size=5, workers=1).done == 15
    merged = ShardSet(tmp_path / "all", kind=kind, check="full")
    assert merged.ids == ids("b", 9) + ids("a", 6) and merged.shard_rows == [5, 5, 5]
    assert content(tmp_path / "all") == content(one, two)
    provenance = merged.manifest.provenance
    assert provenance["tool"] == "data_tools.merge" and provenance["inputs"] == {
        "0": {"manifest": read_manifest(one).digest, "images": 9, "tool": "t"},
        "1": {"manifest": read_manifest(two).digest, "images": 6, "tool": "t"}}
    parts = parse_parts(["train=0.6", "val=0.2"])
    assert split(tmp_path / "all", tmp_path / "parts", parts, 3, workers=1).done == 12
    train, val = (ShardSet(tmp_path / "parts" / name, kind, "full") for name in ("train", "val"))
    assert (len(train), len(val)) == (9, 3) and not set(train.ids) & set(val.ids)
    assert train.ids == [name for name in merged.ids if name in set(train.ids)]
    made = content(train.path, val.path)
    assert made == {name: content(tmp_path / "all")[name] for name in made}
    recorded = train.manifest.provenance
    assert recorded["parameters"] == {"part": "train", "seed": 3,
                                      "parts": {"train": "3/5", "val": "1/5"}}
    assert recorded["inputs"]["manifest"] == merged.manifest.digest
    assert all(not verify_set(path) for path in (train.path, val.path)) or kind != "seeds"


def test_split_does_not_depend_on_shards_or_order(tmp_path):
    names = ids("x", 20)
    split(a_set(tmp_path / "a", names, rows=3), tmp_path / "A", parse_parts(["t=0.5"]), workers=1)
    split(a_set(tmp_path / "b", names[::-1], rows=7), tmp_path / "B", parse_parts(["t=0.5"]),
          workers=1)
    first, second = ShardSet(tmp_path / "A/t").ids, ShardSet(tmp_path / "B/t").ids
    assert len(first) == 10 and first == second[::-1]


def test_lists_and_shares(tmp_path, capsys):
    source = a_set(tmp_path / "set", ids("x", 10))
    (tmp_path / "val.txt").write_text("x-Ü写 7\nx-Ü写 2\n", encoding="utf-8")
    assert splitting.main(source, tmp_path / "out", [f"val={tmp_path / 'val.txt'}", "train=0.5"],
                          workers=1) == 0
    said = capsys.readouterr().err
    assert "4 of 10 images are in no part" in said and "out/train: 4 images" in said
    assert ShardSet(tmp_path / "out/val").ids == ["x-Ü写 2", "x-Ü写 7"]
    assert not {"x-Ü写 2", "x-Ü写 7"} & set(ShardSet(tmp_path / "out/train").ids)


def test_split_and_merge_back(tmp_path):
    source = a_set(tmp_path / "set", ids("x", 11), extra={"categories": {"cat": 17},
                                                          "left_out": ["gone"]})
    split(source, tmp_path / "out", parse_parts(["a=1/3", "b=2/3"]), workers=1)
    halves = [tmp_path / "out" / name for name in "ab"]
    assert all(read_manifest(half).extra == {"categories": {"cat": 17}, "left_out": []}
               for half in halves)
    merge(tmp_path / "back", halves, workers=1)
    assert content(tmp_path / "back") == content(source)
    assert read_manifest(tmp_path / "back").extra["categories"] == {"cat": 17}


def test_extras_of_merged_sets(tmp_path, capsys):
    one = a_set(tmp_path / "one", ids("a", 3), extra={
        "categories": {"cat": 1}, "data": "/x", "left_out": ["gone", "b-Ü写 0"]})
    two = a_set(tmp_path / "two", ids("b", 3), extra={
        "categories": {"cat": 1}, "data": "/y", "left_out": ["lost"]})
    merge(tmp_path / "all", [one, two], workers=1)
    assert read_manifest(tmp_path / "all").extra == {"categories": {"cat": 1},
                                                     "left_out": ["gone", "lost"]}
    assert "the sets differ in it: data" in capsys.readouterr().err


def test_how_seeds_and_masks_were_made_stays_known(tmp_path):
    """Decoder seeds may name classes outside the tags: refining must know it after a merge."""
    one = a_set(tmp_path / "one", ids("a", 4), "seeds", provenance=ROUTE)
    two = a_set(tmp_path / "two", ids("b", 4), "seeds", provenance={**ROUTE, "data": "e"})
    merge(tmp_path / "all", [one, two], workers=1)
    split(tmp_path / "all", tmp_path / "out", parse_parts(["t=0.5"]), workers=1)
    for folder in (tmp_path / "all", tmp_path / "out/t"):
        made = read_manifest(folder).provenance
        assert describe_route(made) == describe_route(ROUTE) and "route a" in describe_route(made)
        assert made["weights"] == "w" and "data" not in made and "seed" not in made
    crf = {"stage": "refine", "engine": "lattice", "crf": {"iterations": 10}}
    for name, data in (("m1", "d"), ("m2", "e")):
        a_set(tmp_path / name, ids(name, 3), "masks",
              provenance={**crf, "seeds": {**ROUTE, "data": data}, "seeds_digest": name})
    merge(tmp_path / "masks", [tmp_path / "m1", tmp_path / "m2"], workers=1)
    made = read_manifest(tmp_path / "masks").provenance
    assert seed_facts(made)["map"] == "decoder" and "lattice engine" in describe_route(made)


def test_a_part_of_seeds_can_be_refined(tmp_path):
    seeds, data = make_sets(tmp_path / "sets", count=6, size=(20, 24))
    split(seeds, tmp_path / "out", parse_parts(["half=0.5"]), workers=1)
    tally = refine(tmp_path / "out/half", data, tmp_path / "masks", workers=1, progress=False)
    assert (tally.done, tally.exit_code) == (3, 0) and not verify_set(tmp_path / "masks", True)
