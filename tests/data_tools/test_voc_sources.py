"""VOC as it is downloaded: places of masks, SBD, the lists made from it, the split test."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest
from scipy.io import savemat

from data_tools.voc_files import MASK_FOLDERS, find_root, read_mask, read_sbd_mask
from data_tools.voc_lists import read_split
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from tests.data_tools.layout import (
    convert_voc,
    digests,
    save_mask,
    save_sbd_mask,
    sbd_folder,
    tool,
    voc_folder,
    write_list,
)


@pytest.fixture
def root(tmp_path):
    """Train id0 to id7, val id8 to id11, as in VOC; masks for all."""
    folder = voc_folder(tmp_path / "VOCdevkit" / "VOC2012")
    write_list(folder, "".join(f"id{k}\n" for k in range(8)))
    write_list(folder, "".join(f"id{k}\n" for k in range(8, 12)), "val")
    return folder


@pytest.fixture
def sbd(tmp_path):
    """SBD: x1 to x3, id9 of VOC's val and id2 of its train."""
    return sbd_folder(tmp_path / "benchmark_RELEASE", ["x2", "x1", "id9"], ["id2", "x3"])


@pytest.mark.parametrize("above", [0, 1, 2])
def test_the_folder_may_be_named_from_above(root, tmp_path, above):
    given = [root, root.parent, root.parent.parent][above]
    assert find_root(given) == root
    assert convert_voc(given, tmp_path / "set") == 0 and len(ShardSet(tmp_path / "set")) == 8


def test_masks_come_from_the_best_place_that_has_them(root, sbd, tmp_path, capsys):
    """SegmentationClass, then SegmentationClassAug, then SBD; the counts are said and kept."""
    best, second = (root / name for name in MASK_FOLDERS)
    second.mkdir()
    for k in range(6):
        save_mask(second / f"id{k}.png", np.full((24, 32), 2, np.uint8))
    for k in (2, 4, 5):
        (best / f"id{k}.png").unlink()
    shutil.move(second / "id2.png", second / "other.png")
    assert convert_voc(root, tmp_path / "set", sbd=sbd) == 0
    assert "masks: 5 from SegmentationClass, 2 from SegmentationClassAug, 1 from SBD\n" \
        in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set", check="full")
    assert shards.manifest.provenance["parameters"]["masks_from"] == {
        "SegmentationClass": 5, "SegmentationClassAug": 2, "SBD": 1}
    values = [sorted(np.unique(shards.mask(k)).tolist()) for k in range(8)]
    assert values[0] == [0, 1, 255] and values[4] == [2] and values[2] == [0, 3]
    assert shards.tags[2].tolist() == [0, 0, 1]


def test_a_named_folder_of_masks_is_the_only_one(root, sbd, tmp_path, capsys):
    aug = root / "SegmentationClassAug"
    aug.mkdir()
    save_mask(aug / "id1.png", np.full((24, 32), 2, np.uint8))
    options = {"masks": aug.name, "sbd": sbd, "tags": root / "tags.csv"}
    assert convert_voc(root, tmp_path / "set", **options) == 0
    assert "masks: 1 from SegmentationClassAug, 7 images without" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set")
    assert shards.mask(1) is not None and shards.mask(2) is None
    with pytest.raises(UserError, match="Aux: no such folder\n.*folders there: .*ClassAug"):
        convert_voc(root, tmp_path / "other", masks="SegmentationClassAux")


@pytest.mark.parametrize("named", [".", "dataset", ".."])
def test_train_aug_is_made_from_sbd(root, sbd, tmp_path, named, capsys):
    """VOC train and both lists of SBD without VOC val; images that VOC lacks come from SBD."""
    assert convert_voc(root, tmp_path / "set", split="train_aug", sbd=sbd / named) == 0
    said = capsys.readouterr().err
    assert "train_aug: no such list, 11 images from VOC train and SBD, without VOC val" in said
    assert "8 from SegmentationClass, 3 from SBD" in said
    shards = ShardSet(tmp_path / "set", check="full")
    assert shards.ids == sorted([*(f"id{k}" for k in range(8)), "x1", "x2", "x3"])
    assert shards.tags[shards.ids.index("x1")].tolist() == [0, 0, 1]
    assert shards.blob("image", 8) == (sbd / "dataset/img/x1.jpg").read_bytes()
    assert verify_set(tmp_path / "set", decode=True) == []


def test_a_list_file_goes_before_a_made_one(root, sbd):
    write_list(root, "x1\n", "train_aug")
    assert read_split(root, "train_aug", sbd / "dataset") == ["x1"]
    assert read_split(root, "trainval") == sorted(f"id{k}" for k in range(12))
    write_list(root, "id3\n", "trainval")
    assert read_split(root, "trainval") == ["id3"]


def test_the_split_test_has_neither_masks_nor_tags(root, tmp_path, capsys):
    write_list(root, "t0\nt1\n", "test")
    for k in range(2):
        shutil.copy(root / "JPEGImages" / f"id{k}.jpg", root / "JPEGImages" / f"t{k}.jpg")
    assert convert_voc(root, tmp_path / "set", split="test") == 0
    said = capsys.readouterr().err
    assert "tags: none, all zero (the split test" in said and "masks: 2 images without" in said
    shards = ShardSet(tmp_path / "set", check="full")
    assert not shards.tags.any() and not shards.has("mask") and shards.ids == ["t0", "t1"]
    assert shards.manifest.provenance["parameters"]["tags_from"] == "none"
    write_list(root, "t0\nt1\n", "hidden")  # by another name the zeros must be asked for
    with pytest.raises(UserError, match="t0.xml: unreadable annotation .*\n.*--tags-from none"):
        convert_voc(root, tmp_path / "other", split="hidden")
    assert convert_voc(root, tmp_path / "other", split="hidden", tags_from="none") == 0


def test_a_split_named_test_with_truth_keeps_it(root, tmp_path):
    write_list(root, "id0\nid1\n", "test")
    assert convert_voc(root, tmp_path / "masks", split="test") == 0
    (root / "SegmentationClass/id1.png").unlink()
    assert convert_voc(root, tmp_path / "xml", split="test") == 0
    for source in ("masks", "xml"):
        shards = ShardSet(tmp_path / source)
        assert shards.manifest.provenance["parameters"]["tags_from"] == source
        assert shards.tags.sum() == 2


def _no_list(root, sbd):
    (root / "ImageSets/Segmentation/val.txt").unlink()


def _damage(root, sbd):
    path = sbd / "dataset/cls/x1.mat"
    path.write_bytes(path.read_bytes()[:150])


def _no_source(root, sbd):
    shutil.rmtree(root / "Annotations")
    (root / "SegmentationClass/id5.png").unlink()


@pytest.mark.parametrize(("change", "options", "text"), [
    (None, {"split": "train_aug"}, "train_aug.txt: no such list\n.*train, val; or --sbd FOLDER"),
    (_no_list, {"split": "trainval"}, "trainval.txt: no such list\n.*lists there: train"),
    (_no_list, {"split": "train_aug", "sbd": True}, "val.txt: no such list"),
    (None, {"sbd": False}, "nowhere: no SBD release there\n.*benchmark_RELEASE"),
    (_damage, {"split": "train_aug", "sbd": True}, "x1.mat: unreadable SBD mask"),
    (lambda r, s: save_sbd_mask(s / "dataset/cls/x1.mat", np.full((24, 32), 9, np.uint8)),
     {"split": "train_aug", "sbd": True}, "x1.mat: mask value 9, .* 3 classes"),
    (_no_source, {}, "1 of 8 images have no mask: id5\n.*csv, .*xml, .*none .*--sbd FOLDER"),
    (lambda r, s: (s / "dataset/img/x2.jpg").unlink(), {"split": "train_aug", "sbd": True},
     "1 of 11 images of the list are missing: x2")])
def test_refusals_come_before_any_work(root, sbd, tmp_path, change, options, text):
    if change:
        change(root, sbd)
    if "sbd" in options:
        options = {**options, "sbd": sbd if options["sbd"] else tmp_path / "nowhere"}
    with pytest.raises(UserError) as caught:
        convert_voc(root, tmp_path / "set", **options)
    assert re.search(text, str(caught.value)), str(caught.value)
    assert not (tmp_path / "set").exists()


def test_masks_of_sbd_are_read_as_they_are(tmp_path):
    path, mask = tmp_path / "a.mat", np.arange(21, dtype=np.uint8).reshape(3, 7)
    save_sbd_mask(path, mask)
    read = read_mask(path)
    assert read.dtype == np.uint8 and read.flags.c_contiguous and np.array_equal(read, mask)


@pytest.mark.parametrize("content", [
    {"mask": np.zeros((3, 3), np.uint8)}, {"GTcls": np.zeros((3, 3), np.uint8)},
    {"GTcls": {"Boundaries": 1}}, {"GTcls": {"Segmentation": np.zeros((3, 3))}},
    {"GTcls": {"Segmentation": np.zeros((2, 3, 3), np.uint8)}},
    {"GTcls": {"Segmentation": "cat"}}, {"GTcls": {"Segmentation": np.zeros((0, 3), np.uint8)}},
    {"GTcls": {"Segmentation": np.full((3, 3), 700, np.uint16)}}])
def test_a_foreign_mat_file_is_refused(tmp_path, content):
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(UserError, match="a.mat: .*\n  fix: ") as caught:
        read_sbd_mask(tmp_path / "a.mat")
    assert re.search("unreadable SBD mask|not a map of class indices", caught.value.message)


@pytest.mark.parametrize("keep", [0, 1, 20, 130, 200])
def test_a_damaged_mat_file_is_refused(tmp_path, keep):
    save_sbd_mask(tmp_path / "a.mat", np.eye(30, dtype=np.uint8))
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:keep])
    with pytest.raises(UserError, match="a.mat: unreadable SBD mask"):
        read_sbd_mask(tmp_path / "a.mat")


def test_scipy_is_needed_for_masks_of_sbd_only(root, sbd, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    write_list(root, "id0\nid9\n", "train_aug")
    assert convert_voc(root, tmp_path / "png", split="train_aug", sbd=sbd) == 0
    write_list(root, "".join(f"id{k}\n" for k in range(8)) + "x1\n", "train_aug")
    monkeypatch.setattr("data_tools.image_checks.PROBES", 1)
    with pytest.raises(UserError, match="need the package scipy .*\n.*requirements.txt"):
        convert_voc(root, tmp_path / "mat", split="train_aug", sbd=sbd)
    assert not (tmp_path / "mat").exists()


def test_command_line(root, sbd, tmp_path):
    """Workers read masks of both kinds and do not change the files."""
    arguments = ("--split", "train_aug", "--sbd", sbd, "--shard-size", 4)
    done = tool("voc", root.parent.parent, tmp_path / "two", *arguments, "--workers", 2)
    assert done.returncode == 0 and "done 11, skipped 0, failed 0" in done.stderr, done.stderr
    convert_voc(root, tmp_path / "one", split="train_aug", sbd=sbd, shard_size=4)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
