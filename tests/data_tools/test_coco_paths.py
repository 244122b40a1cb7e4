"""File names of COCO files as tools write them, and the way from a set to COCO and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data_tools.coco_names import clean_name
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.export.rle import export_coco
from tests.data_tools.coco_layout import CocoFolder, box, plain_folder, run


def one_image(root, name, file):
    folder = CocoFolder(root)
    folder.add(folder.image(name, file=file), 1, [box(0, 0, 4, 4)])
    return folder.write()


@pytest.mark.parametrize(("name", "file"), [
    ("a\\b\\1.jpg", "a/b/1.jpg"), ("./1.jpg", "1.jpg"), ("my%20cat.jpg", "my cat.jpg"),
    ("/data/upload/3/a/1.jpg", "a/1.jpg"), ("C:\\pictures\\a\\1.jpg", "a/1.jpg"),
    ("s3://bucket/project/a/1.jpg", "a/1.jpg"), ("gs://bucket/1.jpg", "1.jpg"),
    ("https://host/x/my%20cat.jpg?token=1", "my cat.jpg"), ("../../images/1.jpg", "1.jpg"),
    ("/data/local-files/?d=sub/my%20cat.jpg", "sub/my cat.jpg"),
    ("1.JPG", "1.jpg"), ("1.jpg", "1.JPG"), ("a/1.jpg", "a/1.JPG")])
def test_names_as_tools_write_them_are_found(tmp_path, capsys, name, file):
    folder = one_image(tmp_path / "coco", name, file)
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.mask(0).any() and shards.file_name(0) == file
    assert "1 images found under another path or spelling" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my%20cat.jpg", "a#b?c.jpg", "50% off.jpg", "ä b/ü.JPG"])
def test_a_name_that_is_there_as_written_is_taken(tmp_path, name):
    folder = one_image(tmp_path / "coco", name, name)
    if "%20" in name:
        one_image(tmp_path / "coco", "my cat.jpg", "my cat.jpg")
        folder.write()
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.file_name(0) == name and shards.manifest.extra["report"]["other_spelling"] == 0


@pytest.mark.parametrize("name", ["", "/", "..", "./", "gs://bucket", "/data/local-files/?d="])
def test_a_name_of_no_file(name):
    assert clean_name(name) == ""


def test_the_case_of_an_ending_must_be_clear(tmp_path):
    folder = one_image(tmp_path / "coco", "1.jPg", "1.jpg")
    (folder.image_dir / "1.JPG").write_bytes((folder.image_dir / "1.jpg").read_bytes())
    with pytest.raises(UserError, match="1 of 1 images have no file"):
        run(folder, tmp_path / "set")


def equal_names(root):
    folder = CocoFolder(root)
    for k, name in enumerate(("a/1.jpg", "b/1.jpg", "b/2.jpg", "c/3.jpg", "c/3.png")):
        folder.add(folder.image(name), (1, 10, 90)[k % 3], [box(0, 0, k + 1, 4)])
    return folder.write()


def test_equal_file_names_in_several_folders_get_ids_from_their_paths(tmp_path, capsys):
    folder = equal_names(tmp_path / "coco")
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == ["a__1", "b__1", "2", "c__3.jpg", "c__3.png"]
    assert [int(shards.mask(k).astype(bool).sum()) for k in shards] == [4, 8, 12, 16, 20]
    assert "4 images of equal file names (ids from their paths)" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("b/1.jpg\na__1\n2.jpg\n")
    assert run(folder, tmp_path / "some", list_file=tmp_path / "list.txt") == 0
    assert ShardSet(tmp_path / "some").ids == ["b__1", "a__1", "2"]


def test_one_file_for_two_images_is_refused(tmp_path):
    """Both names end alike, and only one such file is there."""
    folder = CocoFolder(tmp_path / "coco")
    for name in ("a/1.jpg", "b/1.jpg"):
        folder.image(name, file="1.jpg")
    folder.add(100, 1, [box(0, 0, 4, 4)])
    with pytest.raises(UserError, match=r"1.jpg: the file of both a/1.jpg and b/1.jpg"):
        run(folder.write(), tmp_path / "set")


@pytest.mark.parametrize("lacking", ["absent", "null", "nan"])
def test_missing_height_and_width_are_read_from_the_image(tmp_path, capsys, lacking):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["images"][:3]:
        if lacking == "absent":
            del item["height"], item["width"]
        else:
            item["height"] = None if lacking == "null" else float("nan")
    assert run(folder.write(), tmp_path / "set") == 0
    assert "3 images whose height and width were read" in capsys.readouterr().err
    assert (ShardSet(tmp_path / "set").mask(0) == 1).sum() == 8 * 32


def test_missing_sizes_of_turned_and_of_damaged_images(tmp_path, capsys):
    """Of a turned image the size that viewers show; a damaged one is named as an image."""
    folder = plain_folder(tmp_path / "coco", images=2)
    for item in folder.content["images"]:
        del item["height"], item["width"]
    image = Image.new("RGB", (24, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder.image_dir / "000000000000.jpg", exif=exif)
    (folder.image_dir / "000000000001.jpg").write_bytes(b"no image")
    assert run(folder.write(), tmp_path / "set", skip_bad=True) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.mask(0).shape == (32, 24) and shards.ids == ["000000000000"]
    assert shards.manifest.extra["left_out"] == ["000000000001"]


def test_heights_may_be_texts(tmp_path):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["images"]:
        item.update(height=str(item["height"]), width=float(item["width"]))
    assert run(folder.write(), tmp_path / "set") == 0


def test_export_and_conversion_back_give_the_same_set(tmp_path):
    """Names with folder and ending, which data_tools.coco and pycocotools find."""
    folder = equal_names(tmp_path / "coco")
    assert run(folder, tmp_path / "set") == 0
    out = tmp_path / "masks.json"
    assert export_coco(tmp_path / "set", out, tmp_path / "set", progress=False).exit_code == 0
    api = COCO(str(out))
    for item in api.loadImgs(api.getImgIds()):
        with Image.open(folder.image_dir / item["file_name"]) as picture:
            assert picture.size == (item["width"], item["height"])
    folder.json = out
    assert run(folder, tmp_path / "back") == 0
    first, second = ShardSet(tmp_path / "set"), ShardSet(tmp_path / "back")
    assert first.ids == second.ids and first.class_names == second.class_names
    assert np.array_equal(first.tags, second.tags)
    for row in first:
        assert np.array_equal(first.mask(row), second.mask(row))
        assert first.blob("image", row) == second.blob("image", row)


def test_sets_without_recorded_names_export_as_before(tmp_path, monkeypatch):
    folder = equal_names(tmp_path / "coco")
    with monkeypatch.context() as patch:
        patch.setattr("data_tools.convert.ShardWriter.add", _without_file())
        patch.setattr("data_tools.build.parallel", lambda write, parts, *_: (
            (part, write(part)) for part in parts))  # in this process, which is patched
        assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.file_name(0) == ""
    export_coco(tmp_path / "set", tmp_path / "out.json", progress=False)
    images = json.loads((tmp_path / "out.json").read_text())["images"]
    names = [item["file_name"] for item in images]
    assert names == ["a__1.jpg", "b__1.jpg", "2.jpg", "c__3.jpg.jpg", "c__3.png.png"]


def _without_file():
    from more.data.shards.writer import ShardWriter

    add = ShardWriter.add
    return lambda self, *args, file="", **options: add(self, *args, **options)
