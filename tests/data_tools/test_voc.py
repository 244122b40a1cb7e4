"""VOC layout to shards: contents, sources of tags, refusals before long work, odd files."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_tools import inspect, verify
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from tests.data_tools.layout import (
    convert_voc,
    digests,
    save_mask,
    tool,
    voc_folder,
    write_list,
)

DATA = Path(os.environ.get("MORE_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


@pytest.fixture
def root(tmp_path):
    return voc_folder(tmp_path / "voc")


def test_contents(root, tmp_path):
    assert convert_voc(root, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set", kind="images", check="full")
    assert shards.class_names == ["cat", "dog", "cow"] and shards.shard_rows == [5, 5, 2]
    assert shards.ids == [f"id{k}" for k in range(12)]
    for k in range(12):
        assert shards.blob("image", k) == (root / "JPEGImages" / f"id{k}.jpg").read_bytes()
        assert shards.tags[k].tolist() == np.eye(3, dtype=int)[k % 3].tolist()
        stored = np.asarray(Image.open(root / "SegmentationClass" / f"id{k}.png"))
        assert np.array_equal(shards.mask(k), stored)
        assert Image.open(io.BytesIO(shards.blob("mask", k))).mode == "L"
    provenance = shards.manifest.provenance
    assert provenance["tool"] == "data_tools.voc" and provenance["parameters"]["split"] == "train"
    assert verify_set(tmp_path / "set", decode=True) == []


def test_the_three_sources_of_tags_agree(root, tmp_path):
    for source in ("masks", "xml", "csv"):
        convert_voc(root, tmp_path / source, tags_from=source, tags=root / "tags.csv")
    first = ShardSet(tmp_path / "masks").tags
    assert all(np.array_equal(first, ShardSet(tmp_path / s).tags) for s in ("xml", "csv"))
    assert ShardSet(tmp_path / "xml").has("mask")


def test_images_without_masks_need_other_tags(root, tmp_path):
    (root / "SegmentationClass" / "id3.png").unlink()
    (root / "SegmentationClassAug").mkdir()
    with pytest.raises(UserError, match="1 of 12 images have no mask: id3") as caught:
        convert_voc(root, tmp_path / "set", tags_from="masks", masks="SegmentationClass")
    assert "--masks SegmentationClassAug" in caught.value.fix and not (tmp_path / "set").exists()
    (root / "tags.csv").write_text((root / "tags.csv").read_text().replace("id3,cat", "id3,"))
    assert convert_voc(root, tmp_path / "set", tags=root / "tags.csv") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.mask(3) is None and shards.mask(4) is not None and not shards.tags[3].any()
    assert convert_voc(root, tmp_path / "auto") == 0  # auto falls back to the annotations
    assert ShardSet(tmp_path / "auto").manifest.provenance["parameters"]["tags_from"] == "xml"


@pytest.mark.parametrize(("change", "options", "text"), [
    (lambda r: None, {"split": "tarin"}, "tarin.txt: no such list\n.*lists there: train"),
    (lambda r: write_list(r, "id0\nid99\n"), {}, "1 of 2 images of the list are missing: id99"),
    (lambda r: write_list(r, ""), {}, "list is empty"),
    (lambda r: write_list(r, "id0\nid0\n"), {}, "'id0' comes twice"),
    (lambda r: (r / "classes.txt").write_text("cat\ndog\n"), {}, "mask value 3, .* 2 classes"),
    (lambda r: (r / "classes.txt").write_text("cat\ncat\n"), {}, "classes.txt: 'cat' comes twice"),
    (lambda r: (r / "classes.txt").write_text("cat\nbackground\n"), {}, "background first"),
    (lambda r: None, {"classes": Path("nowhere.txt")}, "nowhere.txt: no such file"),
    (lambda r: None, {"tags": Path("nowhere.csv")}, "nowhere.csv: no such file"),
    (lambda r: None, {"tags_from": "csv"}, "needs the file"),
    (lambda r: None, {"tags_from": "names"}, "unknown"),
    (lambda r: (r / "Annotations/id4.xml").write_text("<"), {"tags_from": "xml"}, "id4.xml: unr"),
    (lambda r: (r / "SegmentationClass/id0.png").write_bytes(b"x"), {}, "id0.png: unreadable"),
])
def test_refusals_come_before_any_work(root, tmp_path, change, options, text):
    change(root)
    with pytest.raises(UserError) as caught:
        convert_voc(root, tmp_path / "set", **options)
    assert re.search(text, str(caught.value)), str(caught.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("old", "new", "text"), [
    ("id,tags", "who,tags", "names no column of images"),
    ("id2,cow", "id2,cwo", "line 4: unknown class 'cwo'\n.*did you mean cow"),
    ("id2,cow", "id1,cow", "line 4: id 'id1' comes twice"),
    ("id2,cow\n", "", "1 of 12 images have no line: id2")])
def test_bad_csv(root, tmp_path, old, new, text):
    path = root / "tags.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        convert_voc(root, tmp_path / "set", tags=path)
    assert re.search(text, str(caught.value)), str(caught.value)


def _truncated(root):
    path = root / "JPEGImages/id7.jpg"
    path.write_bytes(path.read_bytes()[:-150])


@pytest.mark.parametrize(("change", "text"), [
    (_truncated, "id7.jpg: "),  # OpenCV or Pillow notices, by version
    (lambda r: (r / "JPEGImages/id7.jpg").write_bytes(b""), "cannot be decoded"),
    (lambda r: save_mask(r / "SegmentationClass/id7.png", np.zeros((5, 5), np.uint8)),
     "mask is 5x5, the image 24x32"),
    (lambda r: Image.new("RGB", (32, 24)).save(r / "SegmentationClass/id7.png"), "not indices"),
    (lambda r: Image.fromarray(np.full((24, 32), 700, np.uint16)).save(
        r / "SegmentationClass/id7.png"), "mask value 700 is above 255"),
])
def test_one_bad_image_fails_its_shard_only(root, tmp_path, monkeypatch, change, text, capsys):
    """Faults 19 and 26."""
    monkeypatch.setattr("data_tools.image_checks.PROBES", 1)  # let the worker find it
    original = digests(root / "JPEGImages"), digests(root / "SegmentationClass")
    change(root)
    out = tmp_path / "set"
    assert convert_voc(root, out) == 1
    assert f"id7: {root}" in (said := capsys.readouterr().err) and text in said
    assert sorted(path.name for path in out.glob("*.h5")) == ["shard-00000.h5", "shard-00002.h5"]
    assert not (out / "manifest.json").exists()
    assert original != (digests(root / "JPEGImages"), digests(root / "SegmentationClass"))
    assert convert_voc(root, tmp_path / "skipping", skip_bad=True) == 0
    assert "skipped 1, failed 0" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "skipping", check="full")
    assert len(shards) == 11 and shards.manifest.extra["left_out"] == ["id7"]


def _grey(path):
    cv2.imwrite(str(path), np.full((24, 32), 90, np.uint8))


def _cmyk(path):
    Image.new("CMYK", (32, 24), (0, 255, 255, 0)).save(path, "JPEG")


def _deep(path):
    cv2.imwrite(str(path.with_suffix(".png")), np.full((24, 32, 3), 90 * 257, np.uint16))
    path.unlink()


def _rotated(path):
    image = Image.new("RGB", (32, 24), (90, 90, 90))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "JPEG", exif=exif)


@pytest.mark.parametrize(("write", "pixel"), [
    (_grey, (90, 90, 90)), (_cmyk, (255, 0, 0)), (_deep, (90, 90, 90)), (_rotated, (90, 90, 90))])
def test_odd_images_have_a_defined_result(root, tmp_path, write, pixel):
    """Fault 19: grey, CMYK, 16-bit, EXIF-rotated: RGB uint8 in stored orientation."""
    write(root / "JPEGImages/id7.jpg")
    assert convert_voc(root, tmp_path / "set") == 0
    image = ShardSet(tmp_path / "set").image(7)
    assert image.shape == (24, 32, 3) and np.abs(image.astype(int) - pixel).max() <= 4


def test_unicode_names_one_pixel_and_wrong_endings(root, tmp_path):
    """Fault 19."""
    cv2.imwrite(str(root / "JPEGImages/id1.jpg"), np.zeros((1, 1, 3), np.uint8))
    save_mask(root / "SegmentationClass/id1.png", np.array([[2]], np.uint8))
    (root / "JPEGImages/id0.jpg").rename(root / "JPEGImages/Übung-写真.png")  # a JPEG, really
    (root / "SegmentationClass/id0.png").rename(root / "SegmentationClass/Übung-写真.png")
    write_list(root, "Übung-写真\n/JPEGImages/id1.jpg /SegmentationClass/id1.png\nid2 -1\n")
    assert convert_voc(root, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == ["Übung-写真", "id1", "id2"] and shards.image(0).shape == (24, 32, 3)
    assert shards.image(1).shape == (1, 1, 3) and shards.mask(1).tolist() == [[2]]


def test_command_line(root, tmp_path, capsys):
    """Workers do not change the files; a rerun does nothing; changed parameters are refused."""
    arguments = (root, tmp_path / "two", "--split", "train", "--shard-size", 3)
    first = tool("voc", *arguments, "--workers", 2)
    assert first.returncode == 0 and "done 12, skipped 0, failed 0" in first.stderr
    convert_voc(root, tmp_path / "one", shard_size=3)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert convert_voc(root, tmp_path / "two", shard_size=3) == 0
    assert "done 0, skipped 12, failed 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="shard_size: 3 there, 4 now"):
        convert_voc(root, tmp_path / "two", shard_size=4)
    (tmp_path / "two/shard-00001.h5").unlink()
    convert_voc(root, tmp_path / "two", shard_size=3)
    assert "done 3, skipped 9, failed 0" in capsys.readouterr().err
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    refused = tool("voc", root, tmp_path / "three", "--split", "val")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error: ") and "fix: " in refused.stderr


def test_verify_and_inspect(root, tmp_path, capsys):
    out = tmp_path / "set"
    convert_voc(root, out)
    assert verify.main(out, decode=True, as_json=False) == 0
    capsys.readouterr()
    inspect.main(out, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 12 and facts["classes"] == {"cat": 4, "dog": 4, "cow": 4}
    assert inspect.main(out, as_json=False) == 0 and "cow" in capsys.readouterr().out
    path = out / "shard-00002.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify.main(out, decode=False, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["file"] == path.name
    with pytest.raises(UserError, match="no such shard set"):
        verify.main(tmp_path / "nowhere")


@pytest.mark.skipif(not (DATA / "voc12sub").is_dir(), reason="MORE_DATA without voc12sub")
def test_real_images(tmp_path):
    root = tmp_path / "voc"
    root.mkdir()
    for path in (DATA / "voc12sub").iterdir():
        if path.name != "ImageSets":
            (root / path.name).symlink_to(path)
    names = (DATA / "voc12sub/ImageSets/Segmentation/val.txt").read_text().split()[:25]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    write_list(root, "\n".join(names))
    assert convert_voc(root, tmp_path / "set", shard_size=10, tags=root / "tags.csv") == 0
    assert verify_set(tmp_path / "set", decode=True) == []
    shards = ShardSet(tmp_path / "set")
    assert shards.num_classes == 20 and len(shards) == 25 and shards.tags.any(1).all()
    assert shards.class_names[11] == "dog"
