"""Seeds of a decoder that chooses among the image's classes, and masks that keep to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from more.data.seeds import SeedItem, decode_seed, encode_seed
from more.data.shards.format import shard_name
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.inference.localize import Request, localize
from more.inference.localizer import Localizer
from more.inference.trained import load_run
from more.jobs.ranks import Rank
from more.refinement.plan import open_pair, plan
from more.refinement.refine import refine
from tests.data.sets import NAMES, label_pictures
from tests.inference.test_localize import make_run
from tests.refinement.sets import FAST, INLINE, textured

TAGS = [(1, 3), (2,), (), (1, 2, 3), (3,), (1, 2)]
CPU = torch.device("cpu")
WITHIN = Request(("decoder",), "true", 0, within_tags=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An untrained network: its decoder finds every class everywhere."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images with the classes of `TAGS`."""
    rng, labels, pictures = np.random.default_rng(0), [], []
    for number, tags in enumerate(TAGS):
        label = np.zeros((40 + number, 44), np.uint8)
        for place, value in enumerate(tags):
            label[8 * place:8 * place + 6, 5:30] = value
        labels.append(label)
        pictures.append(textured(rng, *label.shape))
    return label_pictures(tmp_path_factory.mktemp("data") / "set", labels, pictures)


@pytest.fixture(scope="module")
def seeds(run, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "set"
    assert localize(run, data, out, WITHIN).done == len(TAGS)
    return out


def items(folder: Path) -> list[SeedItem]:
    made = ShardSet(folder, kind="seeds", check="full")
    return [decode_seed(made.blob("seed", row)) for row in made]


def test_no_class_outside_the_tags_and_probabilities_sum_to_one(run, data, seeds, tmp_path):
    localize(run, data, tmp_path / "free", replace(WITHIN, within_tags=False))
    strangers = 0
    for tags, item, free in zip(TAGS, items(seeds), items(tmp_path / "free"), strict=True):
        assert item.keys.tolist() == [0, *tags]
        np.testing.assert_allclose(item.maps.astype(float).sum(0), 1, atol=2e-3)
        strangers += len(set(free.keys.tolist()) - {0, *tags})
    assert strangers > 4, "without the option other classes are found"


def test_an_image_without_tags_is_background(seeds):
    item = items(seeds)[TAGS.index(())]
    assert item.keys.tolist() == [0] and (item.maps == 1).all()


def test_the_allowed_classes_share_what_the_others_had(run):
    """A softmax over fewer classes, at all scales, with the mirrored image."""
    config, network, _ = load_run(run)
    localizer = Localizer(config, network, WITHIN, CPU)
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    within = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    with torch.inference_mode():
        free, kept = localizer._decoder(images, None), localizer._decoder(images, within)
    allowed = torch.cat([torch.ones(3, 1), within.float()], dim=1)[:, :, None, None]
    expected = free * allowed / (free * allowed).sum(1, keepdim=True)
    torch.testing.assert_close(kept, expected)
    assert torch.equal(kept[2], free[2]) and not (kept * (1 - allowed)).any()


def test_the_record_says_that_the_tags_are_the_true_ones(run, data, seeds, tmp_path):
    made = read_manifest(seeds).provenance
    assert (made["map"], made["tags"]) == ("decoder", "true")
    with pytest.raises(UserError, match="'true' there, 'none' now"):
        localize(run, data, seeds, replace(WITHIN, within_tags=False))
    localize(run, data, tmp_path / "predicted", replace(WITHIN, tags="predicted"))
    assert read_manifest(tmp_path / "predicted").provenance["tags"] == "predicted"


def test_masks_of_them_hold_the_tags_of_the_images(data, seeds, tmp_path):
    tally = refine(seeds, data, tmp_path / "masks", FAST, progress=False, **INLINE)
    assert (tally.done, tally.exit_code) == (len(TAGS), 0)
    masks = ShardSet(tmp_path / "masks")
    assert np.array_equal(masks.tags, ShardSet(data).tags)
    for row, tags in enumerate(TAGS):
        assert set(np.unique(masks.mask(row))) <= {0, *tags}


def specs(seeds: Path, data: Path, out: Path):
    return plan(*open_pair(seeds, data, Rank()), out, replace(FAST, engine="lattice"), 64)


@pytest.mark.parametrize(("made", "kept"), [
    ({"map": "decoder", "tags": "true"}, True), ({"map": "decoder", "tags": "none"}, False),
    ({"map": "decoder", "tags": "predicted"}, False), ({"map": "decoder"}, False),
    ({"map": "lam", "tags": "true"}, True), ({"map": "lam", "tags": "predicted"}, False),
    ({"map": "lam"}, True), ({"parameters": {"map": "decoder", "tags": "none"}}, False)])
def test_refine_keeps_to_tags_that_the_seeds_were_made_with(data, tmp_path, made, kept):
    """A class that the image does not show fails it, or becomes one of its tags."""
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    free = made.get("map", made.get("parameters", {}).get("map")) == "decoder"
    keys = [0, 2] if free else [2]
    with ShardWriter(seeds / shard_name(0), "seeds", NAMES) as writer:
        maps = np.full((len(keys), 4, 4), 0.5, np.float16)
        writer.add("image_0", [1, 0, 1], (40, 44), seed=encode_seed(SeedItem(keys, maps)))
    write_manifest(seeds, "seeds", NAMES, [writer.entry], made)
    assert [spec.keep_to_tags for spec in specs(seeds, data, tmp_path / "masks")] == [kept]
    tally = refine(seeds, data, tmp_path / "masks", FAST, progress=False, **INLINE)
    assert tally.done == (not kept) and len(tally.failures) == kept
    if kept:
        assert "the image's tags are [1, 3]" in tally.failures[0][1]
    else:
        assert ShardSet(tmp_path / "masks").tags.tolist() == [[0, 1, 0]]


def test_the_command_takes_the_option(run, data, tmp_path, monkeypatch, capsys):
    from more.cli import main

    monkeypatch.setattr("sys.argv", ["more", "localize", "--run", str(run), "--data", str(data),
                                     "--map", "decoder", "--within-tags",
                                     "--out", str(tmp_path / "seeds")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert read_manifest(tmp_path / "seeds").provenance["tags"] == "true"
    assert [item.keys.tolist() for item in items(tmp_path / "seeds")] == [[0, *t] for t in TAGS]


def test_the_other_maps_do_not_change(run, data, tmp_path):
    for within in (True, False):
        localize(run, data, tmp_path / str(within),
                 Request(("lam", "decoder"), "true", 0, within_tags=within))
    one, two = (ShardSet(tmp_path / str(within) / "lam") for within in (True, False))
    assert [one.blob("seed", row) for row in one] == [two.blob("seed", row) for row in two]
