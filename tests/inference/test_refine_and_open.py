"""`more.refine` on arrays and `more.open` on shard sets, as notebooks use them."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import more
from more.data.seeds import SeedItem
from more.data.shards.reader import ShardSet
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement, refine_item
from tests.data.sets import NAMES, mask_set, small_set
from tests.refinement.sets import make_sets

RNG = np.random.default_rng(0)
PICTURE = np.repeat(RNG.integers(0, 255, (30, 5, 3), dtype=np.uint8), 8, axis=1)
MAPS = RNG.random((3, 30, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("set") / "images", shards=2, rows=2, bare=[3])


def test_refine_is_the_crf_of_more_refine(tmp_path):
    item = SeedItem(np.array([0, 4, 7]), MAPS.astype(np.float16))
    label, _ = refine_item(PICTURE, item, Refinement())
    made = more.refine(PICTURE, item.maps)
    assert np.array_equal(np.array([0, 4, 7], np.uint8)[made.mask], label)
    assert made.mask.dtype == np.uint8 and made.probabilities.dtype == np.float32
    assert np.allclose(made.probabilities.sum(0), 1, atol=1e-4)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", Image.fromarray(PICTURE)):
        same = more.refine(image, torch.from_numpy(item.maps))
        assert np.array_equal(same.probabilities, made.probabilities)


def test_the_parameters_of_refine_are_the_released_ones_and_each_counts():
    signature = inspect.signature(more.refine).parameters
    named = {name: signature[name].default for name in asdict(CRFParams())}
    assert named == asdict(CRFParams()) and signature["engine"].default == "auto"
    usual = more.refine(PICTURE, MAPS).probabilities
    for name, value in named.items():
        changed = more.refine(PICTURE, MAPS, **{name: value / 2 if name != "iterations" else 1})
        assert not np.allclose(changed.probabilities, usual, atol=1e-6), name
    assert np.array_equal(more.refine(PICTURE, MAPS, iterations=0).mask, MAPS.argmax(0))
    assert not more.refine(PICTURE, MAPS[:1]).mask.any()


@pytest.mark.parametrize(("image", "maps", "options", "words"), [
    (PICTURE, MAPS[:, :29], {}, "shape 3 × 29 × 40 do not fit a picture of 30 × 40"),
    (PICTURE, MAPS[0], {}, "shape 30 × 40 do not fit"),
    (PICTURE, MAPS.transpose(1, 2, 0), {}, "shape 30 × 40 × 3 do not fit"),
    (PICTURE, MAPS[:0], {}, "of 0 labels"), (PICTURE, MAPS * 7, {}, "probabilities from 0"),
    (PICTURE, MAPS * np.nan, {}, "not finite"), (PICTURE[..., 0], MAPS, {}, "not uint8 30 × 40"),
    (PICTURE, MAPS, {"iterations": -1}, "iterations is -1"),
    (PICTURE, MAPS, {"engine": "quick"}, "unknown CRF engine 'quick'"),
    ("none.png", MAPS, {}, "none.png: no such file")])
def test_what_cannot_be_refined_is_named(image, maps, options, words):
    with pytest.raises(more.UserError, match=words) as error:
        more.refine(image, maps, **options)
    assert error.value.fix


def test_open_gives_images_tags_and_masks(images):
    opened, source = more.open(images), ShardSet(images)
    assert len(opened) == 4 and opened.classes == tuple(NAMES) and opened.ids == source.ids
    assert repr(opened) == f"ImageSet({images}: 4 images, 3 classes)"
    for row, item in enumerate(opened):  # ends with the last image
        assert item.id == f"image_{row}" and item.tags == (NAMES[row % 3],)
        assert np.array_equal(np.asarray(item.image), source.image(row))
        assert item.mask is None if row == 3 else np.array_equal(item.mask, source.mask(row))
    assert row == 3 and opened[-1].id == opened[3].id
    with pytest.raises(IndexError):
        _ = opened[4]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_processes_read_the_set(images, context):
    opened = more.open(images)
    first = opened[0]  # opens a file here, which no other process may share
    loader = DataLoader(opened, batch_size=2, collate_fn=list, num_workers=1,
                        multiprocessing_context=context)
    items = [item for batch in loader for item in batch]
    assert [item.id for item in items] == opened.ids
    assert np.array_equal(np.asarray(items[0].image), np.asarray(first.image))
    assert pickle.loads(pickle.dumps(opened))[2].id == "image_2"
    ids = list(DataLoader(more.open(images, transform=lambda item: len(item.tags)), batch_size=4))
    assert ids[0].tolist() == [1, 1, 1, 1]


def test_open_takes_masks_and_refuses_what_is_neither(images, tmp_path):
    masks = more.open(mask_set(tmp_path / "masks", images))
    assert masks[1].image is None and (masks[1].mask[1:] == 2).all()
    seeds, _ = make_sets(tmp_path / "made", count=2)
    for folder, words in ((seeds, "holds seeds"), (tmp_path / "none", "no such folder"),
                          (tmp_path, "manifest.json")):
        with pytest.raises(more.UserError, match=words):
            more.open(folder)
