"""COCO to shards: contents, the rules for annotations, odd files, real images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import coco
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from tests.data_tools.coco_layout import CocoFolder, box, plain_folder, run, runs

DATA = Path(os.environ.get("MORE_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


@pytest.fixture
def mixed(tmp_path):
    """One image for every rule; see `test_every_rule`."""
    folder = CocoFolder(tmp_path / "coco")
    overlap, crowd, areas, bare, alone = (
        folder.image(f"{name}.jpg") for name in ("overlap", "crowd", "areas", "bare", "alone"))
    folder.add(overlap, 1, [box(4, 4, 8, 8)])
    folder.add(overlap, 10, [box(0, 0, 20, 30)])
    folder.add(crowd, 90, runs(0, 0, 24, 16), crowd=1)
    folder.add(crowd, 1, [box(0, 8, 12, 20)])
    folder.add(areas, 1, [])
    folder.add(areas, 10, [[0, 0, 20, 20]])
    folder.add(areas, 90, [[1, 1, 2, 2], box(2, 2, 6, 6)])
    folder.add(alone, 90, runs(5, 5, 9, 9), crowd=1)
    folder.add(999, 1, [box(0, 0, 4, 4)])
    assert bare
    return folder.write()


def test_every_rule(mixed, tmp_path, capsys):
    """Fault 20: crowd regions, RLE and polygons, overlaps, empty annotations, unlisted images."""
    assert run(mixed, tmp_path / "set") == 0
    said = capsys.readouterr().err
    assert "images per class" in said and "warning: set: fewer than 20 images: person 3" in said
    shards = ShardSet(tmp_path / "set", kind="images", check="full")
    assert shards.class_names == ["person", "traffic light", "toothbrush"]
    assert shards.ids == ["overlap", "crowd", "areas", "bare", "alone"]
    assert shards.tags.tolist() == [[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    overlap = np.zeros((24, 32), np.uint8)
    overlap[:20, :30] = 2
    overlap[4:8, 4:8] = 1
    crowd = np.zeros((24, 32), np.uint8)
    crowd[:, :16] = 255
    crowd[:12, 8:20] = 1
    areas, alone = np.zeros((2, 24, 32), np.uint8)
    areas[2:6, 2:6], alone[5:9, 5:9] = 3, 255
    for k, wanted in enumerate((overlap, crowd, areas, 0 * areas, alone)):
        assert np.array_equal(shards.mask(k), wanted), k
        stored = (mixed.image_dir / f"{shards.ids[k]}.jpg").read_bytes()
        assert shards.blob("image", k) == stored
    extra = shards.manifest.extra
    assert extra["categories"] == [
        {"index": 1, "id": 1, "name": "person", "supercategory": "person"},
        {"index": 2, "id": 10, "name": "traffic light", "supercategory": "outdoor"},
        {"index": 3, "id": 90, "name": "toothbrush", "supercategory": "indoor"}]
    assert {key: extra["report"][key] for key in (
        "other_types", "joined_categories", "no_pixel", "other_spelling")} == {
            "other_types": 0, "joined_categories": 0, "no_pixel": 0, "other_spelling": 0}
    assert {key: extra["report"][key] for key in (
        "images", "annotations", "crowd_regions", "empty_segmentations", "small_polygons",
        "unknown_category", "unlisted_images", "other_images", "missing_files", "without_tags",
        "dropped")} == {
        "images": 5, "annotations": 8, "crowd_regions": 2, "empty_segmentations": 1,
        "small_polygons": 2, "unknown_category": 0, "unlisted_images": 1, "other_images": 0,
        "missing_files": 0, "without_tags": 1, "dropped": 0}
    for text in ("8 annotations\n", "2 crowd regions", "1 annotations without segmentation",
                 "2 polygons of fewer than 3 points", "1 images without a tag\n",
                 "1 annotations of images that the file does not list", "done 5, skipped 0"):
        assert text in said, text
    assert shards.manifest.provenance["tool"] == "data_tools.coco"
    assert verify_set(tmp_path / "set", decode=True) == []


def test_images_without_tags_can_be_dropped(mixed, tmp_path, capsys):
    assert run(mixed, tmp_path / "set", drop_untagged=True) == 0
    assert "1 images without a tag that were left out" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == ["overlap", "crowd", "areas", "alone"]
    assert shards.mask(3).max() == 255 and shards.manifest.extra["report"]["dropped"] == 1


def test_without_masks(mixed, tmp_path):
    """Tags alone need no segmentations."""
    assert run(mixed, tmp_path / "with") == 0
    for annotation in mixed.content["annotations"]:
        annotation.pop("segmentation")
    mixed.write()
    assert run(mixed, tmp_path / "set", masks=False) == 0
    shards = ShardSet(tmp_path / "set")
    assert not shards.has("mask")
    assert np.array_equal(shards.tags, ShardSet(tmp_path / "with").tags)


def test_unknown_categories(mixed, tmp_path, capsys):
    """Fault 20: refused before any conversion, or these annotations are left out and counted."""
    mixed.content["annotations"][0]["category_id"] = 77
    mixed.content["annotations"][3]["category_id"] = 78
    mixed.write()
    with pytest.raises(UserError, match=r"2 annotations .* annotation 1 \(category 77\), annot"):
        run(mixed, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert run(mixed, tmp_path / "set", skip_bad=True) == 0
    assert "2 annotations of an unknown category (left out)" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set")
    assert shards.tags[:2].tolist() == [[0, 1, 0], [0, 0, 1]] and len(shards) == 5
    assert shards.manifest.extra["report"]["unknown_category"] == 2
    assert 1 not in shards.mask(0)


def test_one_bad_annotation_fails_its_shard_only(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    folder.content["annotations"][7]["segmentation"] = {"size": [5, 5], "counts": [25]}
    folder.content["images"][8]["height"] = 25
    folder.write()
    assert run(folder, tmp_path / "set") == 1
    said = capsys.readouterr().err
    assert "000000000007: annotation 8: run lengths are for 5x5, the image is 24x32" in said
    assert "annotations of 000000000008.jpg: mask is 25x32, the image 24x32" in said
    assert sorted(path.name for path in (tmp_path / "set").glob("*.h5")) == [
        "shard-00000.h5", "shard-00002.h5"]
    assert run(folder, tmp_path / "skipping", skip_bad=True) == 0
    assert "done 10, skipped 2, failed 0" in capsys.readouterr().err
    assert ShardSet(tmp_path / "skipping").manifest.extra["left_out"] == [
        "000000000007", "000000000008"]


def test_masks_of_turned_images_are_turned_back(tmp_path):
    """The JSON has the size that viewers show; the shard keeps the pixels as stored."""
    folder = CocoFolder(tmp_path / "coco")
    number = folder.image("turned.jpg", (24, 32))
    folder.add(number, 1, [box(0, 0, 4, 32)])
    image = Image.new("RGB", (24, 32))  # stored upright, shown turned: 32 wide, 24 high
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder.image_dir / "turned.jpg", exif=exif)
    assert run(folder.write(), tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.image(0).shape[:2] == shards.mask(0).shape == (32, 24)
    assert shards.mask(0)[:, :4].all() and not shards.mask(0)[:, 4:].any()


def test_ids_may_be_texts_and_the_file_may_start_with_a_mark(tmp_path):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["images"]:
        item["id"] = f"image {item['id']}"
    for item in folder.content["annotations"]:
        item["image_id"] = f"image {item['image_id']}"
    folder.write()
    folder.json.write_bytes(b"\xef\xbb\xbf" + folder.json.read_bytes())
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").tags.argmax(1).tolist() == [0, 1, 2] * 4


@pytest.mark.skipif(not (DATA / "coco128seg").is_dir(), reason="MORE_DATA without coco128seg")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images(tmp_path, split):
    """Polygons of the official annotations, against masks drawn by other means."""
    root = DATA / "coco128seg"
    assert coco.main(root / f"annotations/instances_{split}.json", root, tmp_path / "set",
                     workers=1) == 0
    assert verify_set(tmp_path / "set", decode=True) == []
    shards = ShardSet(tmp_path / "set")
    assert shards.num_classes == 80 and shards.class_names[9] == "traffic light"
    same = pixels = 0
    for k, name in enumerate(shards.ids):
        wanted = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        same, pixels = same + (shards.mask(k) == wanted).sum(), pixels + wanted.size
    assert same / pixels >= 0.99, same / pixels
    print(f"{split}: {same / pixels:.4%} of the pixels agree")
