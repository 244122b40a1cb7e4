"""COCO folders: layouts, lists, missing images, files that are no instances files."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.coco_layout import CocoFolder, box, plain_folder, run


@pytest.mark.parametrize("images", [
    "", "train2014", "val2014", "train2017", "val2017", "JPEGImages", "images"])
def test_layouts(tmp_path, images):
    """The image folder itself, or the parent of one of the usual names."""
    folder = CocoFolder(tmp_path, images or "pictures")
    folder.add(folder.image("000000000009.jpg"), 1, [box(0, 0, 4, 4)])
    folder.write()
    assert run(folder, tmp_path / "set", tmp_path if images else folder.image_dir) == 0
    assert ShardSet(tmp_path / "set").ids == ["000000000009"]


@pytest.mark.parametrize(("name", "file"), [
    ("COCO_train2014_000000000009.jpg", "000000000009.jpg"),
    ("COCO_val2014_000000000009.jpg", "000000000009.jpg"),
    ("000000000009.jpg", "COCO_train2014_000000000009.jpg"),
    ("000000000009.jpg", "COCO_val2014_000000000009.jpg"),
    ("train2017/000000000009.jpg", "000000000009.jpg"),
    ("deep/er/picture.one.png", "deep/er/picture.one.png")])
def test_either_edition_and_sub_folders(tmp_path, name, file):
    """The id is the stem of the name in the JSON, whatever the file is called."""
    folder = CocoFolder(tmp_path)
    folder.add(folder.image(name, file=file), 1, [box(0, 0, 4, 4)])
    folder.write()
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    for number, place in enumerate((folder.image_dir, tmp_path)):
        assert run(folder, tmp_path / f"set{number}", place) == 0
        assert ShardSet(tmp_path / f"set{number}").ids == [stem]


def test_lists_choose_and_order_images(tmp_path, capsys):
    folder = plain_folder(tmp_path)
    names = tmp_path / "list.txt"
    names.write_text("000000000007\nval2014/COCO_val2014_000000000003.jpg -1\n\n"
                     "COCO_train2014_000000000005\n")
    assert run(folder, tmp_path / "set", list_file=names) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == ["000000000007", "000000000003", "000000000005"]
    assert shards.tags.argmax(1).tolist() == [1, 0, 2]
    assert "9 annotations of images that are not converted" in capsys.readouterr().err
    for image in folder.content["images"]:
        image["file_name"] = f"COCO_train2014_{image['file_name']}"
    folder.write()
    names.write_text("000000000007\n")
    assert run(folder, tmp_path / "reverse", list_file=names) == 0
    assert ShardSet(tmp_path / "reverse").ids == ["COCO_train2014_000000000007"]


@pytest.mark.parametrize(("text", "why"), [
    ("000000000007\n000000000099\n", "1 of 2 images are not in the annotations: 000000000099"),
    ("000000000007\nCOCO_val2014_000000000007\n", "'000000000007' comes twice"),
    ("\n", "no image to convert")])
def test_bad_lists(tmp_path, text, why):
    folder = plain_folder(tmp_path)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=why):
        run(folder, tmp_path / "set", list_file=tmp_path / "list.txt")
    with pytest.raises(UserError, match="nowhere.txt: no such list"):
        run(folder, tmp_path / "set", list_file=tmp_path / "nowhere.txt")
    assert not (tmp_path / "set").exists()


def test_missing_images(tmp_path, capsys):
    """Fault 20: images listed but missing are refused, or left out, counted and recorded."""
    folder = plain_folder(tmp_path, images=30)
    for k in range(3, 28):
        (folder.image_dir / f"{k:012d}.jpg").unlink()
    with pytest.raises(UserError, match="25 of 30 images have no file: 000000000003.jpg") as caught:
        run(folder, tmp_path / "set")
    assert "000000000022.jpg" in caught.value.message and "--skip-bad" in caught.value.fix
    assert "000000000023.jpg" not in caught.value.message and not (tmp_path / "set").exists()
    assert run(folder, tmp_path / "set", skip_bad=True) == 0
    said = capsys.readouterr().err
    assert "25 images without a file (left out)" in said and "done 5, skipped 25, failed 0" in said
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == [f"{k:012d}" for k in (0, 1, 2, 28, 29)]
    extra = shards.manifest.extra
    assert extra["left_out"] == [f"{k:012d}" for k in range(3, 28)]
    assert extra["report"]["missing_files"] == 25 and extra["report"]["images"] == 5
    assert extra["report"]["other_images"] == 25
    shutil.rmtree(folder.image_dir)
    folder.image_dir.mkdir()
    with pytest.raises(UserError, match="30 of 30"):
        run(folder, tmp_path / "empty", skip_bad=True)


def change(**values):
    """A change of the JSON: a list replaced, taken out (None), or a value of its item 2."""
    def apply(content):
        for key, value in values.items():
            name, _, field = key.partition("__")
            if field == "pop":
                content[name][2].pop(value)
            elif field:
                content[name][2][field] = value
            elif value is None:
                content.pop(name)
            else:
                content[name] = value
        return content
    return apply


@pytest.mark.parametrize(("apply", "why"), [
    (change(images=None), "instances.json: 'images' is missing or empty"),
    (change(annotations=None), "'annotations' is missing or empty"),
    (change(categories=None), "'categories' is missing or empty"),
    (lambda content: [content], "'categories' is missing or empty"),
    (change(images=["a.jpg"]), r"images\[0\]: is not an object"),
    (change(images__pop="file_name"), r"images\[2\]: lacks file_name"),
    (change(images__height=0), r"images\[2\]: height 0, width 32"),
    (change(images__height=24.5), "height 24.5"),
    (change(images__height="24 px"), "height '24 px'"),
    (change(categories__id="1"), "category id 1 comes twice"),
    (change(images__height=10**5, images__width=10**5), "height 100000"),
    (change(images__id=100), r"images\[2\]: image id 100 comes twice"),
    (change(images__id=None), r"images\[2\]: id None"),
    (change(images__file_name="000000000001.jpg"), "image name 000000000001.jpg comes twice"),
    (change(images__file_name="../"), r"images\[2\]: file_name '../'"),
    (change(images__file_name="/x.jpg"), "1 of 12 images have no file: /x.jpg"),
    (change(annotations__pop="category_id"), r"annotations\[2\]: lacks category_id"),
    (change(annotations__pop="image_id"), r"annotations\[2\]: lacks image_id"),
    (change(annotations__segmentation="x"), r"annotations\[2\]: segmentation is neither"),
    (change(annotations__image_id=[1]), r"annotations\[2\]: image_id \[1\]"),
    (change(categories__pop="name"), r"categories\[2\]: lacks name"),
    (change(categories__id=1), "category id 1 comes twice"),
    (change(categories__name=" "), r"categories\[2\]: id 90, name ' '"),
    (change(categories=[{"id": k, "name": str(k)} for k in range(255)]), "255 categories"),
    # a captions and a panoptic file
    (change(annotations=[{"image_id": 100, "id": 5, "caption": "a cat"}]), "lacks category_id"),
    (change(annotations=[{"image_id": 100, "file_name": "a.png", "segments_info": []}]),
     "lacks category_id\n.*panoptic files do not serve"),
])
def test_what_is_no_instances_file_is_refused(tmp_path, apply, why):
    folder = plain_folder(tmp_path)
    folder.json.write_text(json.dumps(apply(folder.content)))
    with pytest.raises(UserError) as caught:
        run(folder, tmp_path / "set")
    assert re.search(why, str(caught.value)), str(caught.value)
    assert str(tmp_path) in caught.value.message and not (tmp_path / "set").exists()


@pytest.mark.parametrize("cut", [
    lambda data: data[:-20], lambda data: data[:len(data) // 2], lambda data: b"",
    lambda data: data + b"}", lambda data: data.replace(b"bbox", b"b\xffx"),
    lambda data: data.replace(b'"bbox"', b"bbox"), lambda data: data.replace(b"1.5", b"NoN"),
    lambda data: b"id,tags"])
def test_malformed_json(tmp_path, cut):
    folder = plain_folder(tmp_path)
    folder.json.write_bytes(cut(folder.json.read_bytes()))
    with pytest.raises(UserError, match="instances.json: not valid JSON"):
        run(folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_paths_that_are_not_there(tmp_path):
    folder = plain_folder(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        run(folder, tmp_path / "set", tmp_path / "nowhere")
    folder.json.unlink()
    with pytest.raises(UserError, match="instances.json: no such file"):
        run(folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()
