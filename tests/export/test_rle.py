"""COCO JSON: read by pycocotools, the same pixels, original ids, nothing half-written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from more.data.shards.codec import encode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.export import export_masks
from more.export.rle import export_coco
from tests.command.conftest import refused
from tests.data.sets import NAMES, small_set
from tests.refinement.sets import make_sets

CATEGORIES = [{"index": k, "id": number, "name": name, "supercategory": "animal"}
              for k, (number, name) in enumerate(zip((17, 18, 21), NAMES, strict=True), 1)]


def noise_set(folder, ids, extra=None, size=(13, 17), damaged=False):
    """Masks of noise over 0..3 and 255; the second is all 255."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    with ShardWriter(folder / "shard-00000.h5", "masks", NAMES) as writer:
        for k, name in enumerate(ids):
            mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), size)
            mask = np.full(size, 255, np.uint8) if k == 1 else mask
            writer.add(name, np.ones(3), (size[0] + (damaged and k == 2), size[1]),
                       mask=encode_mask(mask))
    write_manifest(folder, "masks", NAMES, [writer.entry], {}, extra)
    return folder


def test_pycocotools_reads_the_same_masks(tmp_path):
    masks = noise_set(tmp_path / "masks", ["a", "straße 7", "c"])
    out = tmp_path / "new" / "masks.json"
    tally = export_coco(masks, out, progress=False)
    assert (tally.done, tally.exit_code) == (3, 0)
    coco, source = COCO(str(out)), ShardSet(masks)
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == NAMES
    assert [coco.imgs[k]["file_name"] for k in (1, 2, 3)] == ["a.jpg", "straße 7.jpg", "c.jpg"]
    for row in source:
        mask, found = source.mask(row), coco.loadAnns(coco.getAnnIds(imgIds=row + 1))
        assert {item["category_id"] for item in found} == set(mask.flat) - {0, 255}
        assert (coco.imgs[row + 1]["height"], coco.imgs[row + 1]["width"]) == mask.shape
        for item in found:
            region = mask == item["category_id"]
            np.testing.assert_array_equal(coco.annToMask(item), region)
            (top, left), (bottom, right) = (edge(np.argwhere(region), axis=0)
                                            for edge in (np.min, np.max))
            assert item["bbox"] == [left, top, right - left + 1, bottom - top + 1]
            assert item["area"] == region.sum() and item["iscrowd"] == 0
    assert not [path for path in out.parent.iterdir() if path != out]


def test_the_same_masks_give_the_same_bytes(tmp_path):
    masks = noise_set(tmp_path / "masks", ["a", "b", "c"])
    for name in ("1.json", "2.json"):
        export_coco(masks, tmp_path / name, progress=False)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_ids_of_the_coco_file_come_back(tmp_path):
    ids = ["COCO_val2014_000000000139", "000000000042"]
    masks = noise_set(tmp_path / "masks", ids, {"categories": CATEGORIES})
    export_coco(masks, tmp_path / "a.json", progress=False)
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.getCatIds() == [17, 18, 21] and sorted(coco.imgs) == [42, 139]
    assert {item["category_id"] for item in coco.loadAnns(coco.getAnnIds([139]))} == {17, 18, 21}


def test_categories_and_endings_come_from_the_images(tmp_path):
    data = small_set(tmp_path / "data", shards=1)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["extra"] = {"categories": CATEGORIES}
    (data / "manifest.json").write_text(json.dumps(manifest))
    masks = tmp_path / "masks"
    masks.mkdir()
    source = ShardSet(data)
    with ShardWriter(masks / "shard-00000.h5", "masks", NAMES) as writer:
        for row in reversed(range(3)):
            writer.add(source.ids[row], source.tags[row], source.sizes[row],
                       mask=bytes(source.blob("mask", row)))
    write_manifest(masks, "masks", NAMES, [writer.entry], {})
    export_masks(masks, tmp_path / "a.json", "rle", data=data, progress=False)
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.getCatIds() == [17, 18, 21]
    assert coco.imgs[1]["file_name"] == "image_2.jpg"
    assert [item["category_id"] for item in coco.loadAnns(coco.getAnnIds([1]))] == [21]
    manifest["extra"]["categories"] = CATEGORIES[::-1]
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not the classes"):
        export_coco(masks, tmp_path / "a.json", data, progress=False)


def test_panoptic_segments_are_the_colours_of_the_png(tmp_path):
    masks = noise_set(tmp_path / "masks", ["a", "b"])
    tally = export_coco(masks, tmp_path / "pan.json", panoptic=True, progress=False)
    facts, source = json.loads((tmp_path / "pan.json").read_text()), ShardSet(masks)
    assert tally.done == len(facts["annotations"]) == 2
    assert all(item["isthing"] == 0 for item in facts["categories"])
    for row, item in enumerate(facts["annotations"]):
        colours = np.asarray(Image.open(tmp_path / "pan" / item["file_name"])).astype(int)
        numbers, mask = colours @ (1, 256, 65536), source.mask(row)
        assert (numbers == 0).sum() == np.isin(mask, (0, 255)).sum()
        for segment in item["segments_info"]:
            np.testing.assert_array_equal(numbers == segment["id"],
                                          mask == segment["category_id"])


def test_a_failed_mask_keeps_the_file_back(tmp_path, run):
    masks, out = noise_set(tmp_path / "masks", ["a", "b", "c"], damaged=True), tmp_path / "a.json"
    out.write_text("older")
    ended = run("more", "export", masks, "--format", "rle", "--out", out)
    assert ended.code == 1 and "c: mask is 13x17" in ended.err and "not written" in ended.err
    assert out.read_text() == "older" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("words", "message"), [
    (("--format", "rle", "--out", "OUT"), "NAME.json"),
    (("--format", "rle", "--no-palette", "--out", "a.json"), "--palette"),
    (("--format", "png", "--panoptic", "--out", "OUT"), "--panoptic"),
    (("--format", "png", "--seed", "1", "--out", "OUT"), "--format training"),
    (("--format", "rle", "--list", "x", "--out", "a.json"), "--format voc-server"),
    (("--format", "training", "--out", "OUT"), "--data SET"),
    (("--format", "tiff", "--out", "OUT"), "voc-server")])
def test_options_of_other_formats_are_refused_first(tmp_path, run, words, message):
    assert refused(run("more", "export", tmp_path / "nowhere", *words), message)


def test_a_set_without_masks_is_refused(tmp_path, run):
    seeds, _ = make_sets(tmp_path, count=2)
    ended = run("more", "export", seeds, "--format", "rle", "--out", tmp_path / "a.json")
    assert refused(ended, "no masks", "more refine")
