"""COCO annotations to masks: what lies on top, the three ways to write a region, broken ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_tools.coco_index import Stored
from data_tools.coco_masks import semantic_mask
from data_tools.coco_regions import pack
from more.errors import UserError
from tests.data_tools.coco_layout import SIZE, box, runs


def draw(*annotations, size=SIZE):
    """Mask of (class, segmentation, crowd) triples."""
    stored = []
    for number, (label, segmentation, crowd) in enumerate(annotations):
        region = pack(segmentation, "here")
        if region.kind:
            stored.append(Stored(str(number), label, crowd, *region[:3]))
    return semantic_mask(stored, *size)


def pixels(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def compressed(mask):
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


@pytest.mark.parametrize("area", [(4, 5, 12, 20), (0, 0, 24, 32), (0, 0, 3, 1), (23, 31, 24, 32)])
def test_the_three_encodings_agree(area):
    """Fault 20: polygons, uncompressed and compressed run lengths."""
    wanted = pixels(*area) * np.uint8(7)
    for segmentation in ([box(*area)], runs(*area), compressed(pixels(*area))):
        assert np.array_equal(draw((7, segmentation, False)), wanted)


@pytest.mark.parametrize("seed", range(4))
def test_any_compressed_mask_is_read(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        size = tuple(rng.integers(1, 200, 2))
        mask = rng.random(size) < rng.choice([0, 0.01, 0.5, 0.99, 1])
        assert np.array_equal(draw((1, compressed(mask), False), size=size), mask)


@pytest.mark.parametrize("seed", range(4))
def test_smaller_instances_lie_on_top(seed):
    """Fault 20: overlapping instances, against painting by hand."""
    rng = np.random.default_rng(seed)
    areas = []
    for _ in range(12):
        (top, bottom), (left, right) = (np.sort(rng.choice(n, 2, replace=False)) for n in SIZE)
        areas.append((int(top), int(left), int(bottom), int(right)))
    regions = [pixels(*area) for area in areas]
    wanted = np.zeros(SIZE, np.uint8)
    for k in sorted(range(12), key=lambda k: (-regions[k].sum(), k)):
        wanted[regions[k]] = k + 1
    encode = [lambda a: [box(*a)], lambda a: runs(*a), lambda a: compressed(pixels(*a))]
    drawn = draw(*((k + 1, encode[k % 3](area), False) for k, area in enumerate(areas)))
    assert np.array_equal(drawn, wanted)


def test_of_equal_instances_the_later_lies_on_top():
    first, second = [box(0, 0, 8, 8)], [box(4, 4, 12, 12)]
    for order in ((first, second), (second, first)):
        drawn = draw((1, order[0], False), (2, order[1], False))
        assert (drawn == 2).sum() == 64 and (drawn == 1).sum() == 48


def test_size_is_that_of_the_own_mask():
    """Two polygons of one instance that cover the same pixels count once."""
    twice = [box(0, 0, 10, 10), box(0, 0, 10, 10)]
    drawn = draw((1, twice, False), (2, [box(0, 0, 10, 15)], False))
    assert (drawn == 1).sum() == 100 and (drawn == 2).sum() == 50


@pytest.mark.parametrize("encode", [lambda *a: [box(*a)], runs])
def test_crowd_regions_are_255_where_no_instance_is(encode):
    """Fault 20: crowd regions, before or after an instance, whatever their size."""
    wanted = pixels(2, 2, 10, 10) * np.uint8(255)
    wanted[4:20, 4:30] = 3
    crowd, instance = (1, encode(2, 2, 10, 10), True), (3, [box(4, 4, 20, 30)], False)
    assert np.array_equal(draw(crowd, instance), wanted)
    assert np.array_equal(draw(instance, crowd), wanted)


def test_polygons_of_two_points_have_no_area():
    """Fault 20: pycocotools takes four numbers for a box."""
    assert pack([[0, 0, 20, 20]], "here")[0] == 0
    region = pack([[0, 0, 20, 20], box(1, 1, 3, 3), [1, 2], []], "here")
    assert region.small == 3 and len(region.data) == 64
    assert draw((1, [[0, 0, 20, 20], box(1, 1, 3, 3)], False)).sum() == 4
    assert not draw((1, [], False)).any() and pack([], "here") == pack(None, "here")


@pytest.mark.parametrize("wrong", [
    "text", 5, [1, 2, 3, "4", 5, 6], [["a"] * 6], [[[1, 2], [3, 4], [5, 6]]], [{"size": [1, 1]}],
    {"counts": [1]}, {"size": [24], "counts": [1]}, {"size": [24, 32], "counts": [-1, 5]},
    {"size": [24, 32], "counts": [1.5]}, {"size": [24, 32], "counts": "é"},
    {"size": "ab", "counts": [1]}, {"size": [24, 2**40], "counts": [1]}])
def test_what_is_no_segmentation_is_refused(wrong):
    with pytest.raises(UserError, match="^here: segmentation is neither polygons nor"):
        pack(wrong, "here")


@pytest.mark.parametrize(("wrong", "why"), [
    ([[1.0, 2, 3, 4, 5, 6, 7]], "odd count of numbers"),
    ([[1.0, 2, 3, 4e9, 5, 6]], "far outside"),
    ([[1.0, 2, 3, float("inf"), 5, 6]], "far outside"),
    ([[1.0, 2, 3, float("nan"), 5, 6]], "far outside"),
    ({"size": [32, 24], "counts": [768]}, "run lengths are for 32x24, the image is 24x32"),
    ({"size": [24, 32], "counts": [700]}, "do not add up to 768 pixels"),
    ({"size": [24, 32], "counts": [700, 69]}, "do not add up to 768 pixels"),
    *(({"size": [24, 32], "counts": text}, "do not add up")
      for text in ("0", "zzzz", "~~~~", "P" * 30, "o" * 50, "!\n"))])
def test_broken_segmentations_name_the_annotation(wrong, why):
    with pytest.raises(UserError) as caught:
        draw((1, wrong, False))
    assert re.search(f"^annotation 0: .*{why}", caught.value.message)
