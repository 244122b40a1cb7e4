"""A threshold by the values of the seeds: Otsu's split, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.seeds import SeedItem, encode_seed
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement
from more.refinement.refine import refine
from more.refinement.threshold import BINS, otsu, strongest_values, with_threshold
from tests.refinement.sets import CLASSES, FAST, INLINE, make_sets

AUTO = Refinement(FAST.params, threshold="auto")


def histogram(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, BINS, (0, 1))[0]


def spread_inside(counts: np.ndarray, edge: int) -> float:
    """Variance inside the two groups that an edge makes, each by its share."""
    middles, total = (np.arange(len(counts)) + 0.5) / len(counts), 0.0
    for part in (slice(0, edge), slice(edge, None)):
        number = counts[part].sum()
        if number:
            mean = (counts[part] * middles[part]).sum() / number
            total += (counts[part] * (middles[part] - mean) ** 2).sum()
    return total / counts.sum()


@pytest.mark.parametrize(("low", "high", "share"), [
    (0.2, 0.8, 0.5), (0.1, 0.5, 0.7), (0.4, 0.9, 0.3), (0.15, 0.45, 0.9)])
def test_two_heaps_are_parted_between_them(low, high, share):
    rng = np.random.default_rng(0)
    heaps = [rng.normal(low, 0.04, int(share * 20000)),
             rng.normal(high, 0.04, int((1 - share) * 20000))]
    found = otsu(histogram(np.concatenate(heaps)))
    assert (heaps[0] < found).mean() > 0.999 and (heaps[1] > found).mean() > 0.999


def test_between_equal_heaps_that_touch_it_lies_in_the_middle():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.3, 0.1, 20000), rng.normal(0.7, 0.1, 20000)])
    assert abs(otsu(histogram(values)) - 0.5) < 0.03


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(any))
@settings(max_examples=100, deadline=None)
def test_no_other_edge_leaves_less_variance(counts):
    counts = np.array(counts)
    found = otsu(counts)
    edge = round(found * len(counts))
    assert 0 < found < 1 and edge / len(counts) == pytest.approx(found)
    best = min(spread_inside(counts, other) for other in range(1, len(counts)))
    assert spread_inside(counts, edge) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("place", [0, 37, BINS - 1])
def test_one_value_alone_still_gives_a_threshold(place):
    found = otsu(np.eye(BINS, dtype=int)[place])
    assert 0 < found < 1


def seed_set(folder: Path, items: list[SeedItem | None]) -> Path:
    """A set of seeds; None: bytes that are none."""
    folder.mkdir(parents=True)
    with ShardWriter(folder / shard_name(0), "seeds", CLASSES) as writer:
        for number, item in enumerate(items):
            writer.add(f"image-{number}", np.ones(len(CLASSES)), (8, 8),
                       seed=b"junk" if item is None else encode_seed(item))
    write_manifest(folder, "seeds", CLASSES, [writer.entry], {"map": "lam", "tags": "true"})
    return folder


def test_the_strongest_map_of_every_cell_counts(tmp_path):
    maps = np.array([[[0.0, 0.3], [0.555, 1.0]], [[0.1, 0.2], [0.999, 0.0]]], np.float16)
    none = SeedItem(np.zeros(0, int), np.zeros((0, 2, 2), np.float16))
    folder = seed_set(tmp_path / "seeds", [SeedItem([1, 3], maps), none,
                                           SeedItem([2], np.full((1, 1, 3), 0.625, np.float16))])
    counts = strongest_values(ShardSet(folder), progress=False)
    # As float16 0.1 is a little less, 0.3 a little more; 1 belongs to the last bin.
    expected = np.zeros(BINS, int)
    expected[[9, 30, 62]] = 1, 1, 3
    expected[99] = 2
    assert counts.tolist() == expected.tolist()


def test_seeds_that_cannot_be_read_are_passed_over(tmp_path):
    one = SeedItem([2], np.full((1, 2, 2), 0.625, np.float16))
    counts = strongest_values(ShardSet(seed_set(tmp_path / "a", [None, one])), progress=False)
    assert counts.sum() == counts[62] == 4


def test_a_given_threshold_stays_and_no_seed_is_read():
    how = Refinement(threshold=0.4)
    assert with_threshold(how, None) is how


def test_seeds_without_any_class_are_refused(tmp_path):
    none = SeedItem(np.zeros(0, int), np.zeros((0, 2, 2), np.float16))
    seeds = ShardSet(seed_set(tmp_path / "seeds", [none, None]))
    with pytest.raises(UserError, match="no seed has a class") as caught:
        with_threshold(AUTO, seeds, progress=False)
    assert "as a number" in caught.value.fix


def masks_of(seeds: Path, data: Path, out: Path, how: Refinement, **options):
    return refine(seeds, data, out, how, progress=False, **INLINE, **options)


def test_auto_is_refused_for_seeds_of_a_decoder_before_any_work(tmp_path):
    _, data = make_sets(tmp_path, count=2)
    decoder = SeedItem([0, 2], np.full((2, 3, 3), 0.5, np.float16))
    seeds = tmp_path / "decoder"
    seeds.mkdir()
    with ShardWriter(seeds / shard_name(0), "seeds", CLASSES) as writer:
        writer.add("image-00", np.zeros(4), (60, 72), seed=encode_seed(decoder))
    write_manifest(seeds, "seeds", CLASSES, [writer.entry], {"map": "decoder", "tags": "none"})
    with pytest.raises(UserError, match="threshold auto for seeds with a background of their own"):
        masks_of(seeds, data, tmp_path / "masks", AUTO)
    assert not (tmp_path / "masks").exists()


def test_auto_gives_the_masks_of_its_number_and_records_it(tmp_path, capsys):
    seeds, data = make_sets(tmp_path, count=6)
    tally = masks_of(seeds, data, tmp_path / "auto", AUTO, rows_per_shard=3)
    assert (tally.done, tally.exit_code) == (6, 0)
    made = json.loads((tmp_path / "auto/manifest.json").read_text())["provenance"]
    number = otsu(strongest_values(ShardSet(seeds), progress=False))
    assert made["threshold"] == number != 0.5 and made["threshold_chosen"] == "otsu"
    said = " ".join(capsys.readouterr().err.split())
    assert f"threshold {number:g}, chosen by the values of the seeds" in said
    how = Refinement(FAST.params, threshold=number)
    masks_of(seeds, data, tmp_path / "hand", how, rows_per_shard=3)
    by_hand = json.loads((tmp_path / "hand/manifest.json").read_text())["provenance"]
    assert "threshold_chosen" not in by_hand and by_hand["threshold"] == number
    one, two = ShardSet(tmp_path / "auto"), ShardSet(tmp_path / "hand")
    assert one.ids == two.ids
    for row in one:
        assert one.blob("mask", row) == two.blob("mask", row)
        assert one.blob("confidence", row) == two.blob("confidence", row)
    assert masks_of(seeds, data, tmp_path / "auto", AUTO, rows_per_shard=3).skipped == 6


def test_auto_is_not_the_released_threshold(tmp_path):
    seeds, data = make_sets(tmp_path, count=3)
    masks_of(seeds, data, tmp_path / "auto", AUTO)
    masks_of(seeds, data, tmp_path / "half", Refinement(FAST.params))
    one, two = ShardSet(tmp_path / "auto"), ShardSet(tmp_path / "half")
    assert any(one.blob("confidence", row) != two.blob("confidence", row) for row in one)


def test_the_command_takes_auto_or_a_number(tmp_path, run):
    seeds, data = make_sets(tmp_path, count=2)
    words = ("more", "refine", seeds, "--data", data, "--set", "crf.iterations=1", "--workers", 1)
    done = run(*words, "--out", tmp_path / "masks", "--threshold", "auto")
    assert done.code == 0
    made = json.loads((tmp_path / "masks/manifest.json").read_text())["provenance"]
    assert made["threshold_chosen"] == "otsu" and made["crf"]["iterations"] == 1
    for text, message in (("best", "--threshold best: not a number"), ("1.5", "threshold is 1.5"),
                          ("nan", "threshold is nan")):
        refused = run(*words, "--out", tmp_path / "no", "--threshold", text)
        assert refused.code == 2 and message in refused.err
    assert not (tmp_path / "no").exists()


def test_a_threshold_that_was_never_chosen_is_not_recorded():
    with pytest.raises(ValueError):
        Refinement(CRFParams(), threshold="auto").record()


def test_an_empty_gap_is_cut_in_its_middle():
    counts = np.zeros(BINS, np.int64)
    counts[20], counts[80] = 30, 30
    assert otsu(counts) == pytest.approx(0.51, abs=0.011)
