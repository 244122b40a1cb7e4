"""Tags and class lists as people have them: the one right reading, or a refusal."""

from __future__ import annotations

import json

import pytest

from data_tools.class_lists import tags_from_file
from more.data.class_files import read_classes
from more.data.shards.reader import ShardSet
from more.data.tag_files import read_tag_file
from more.data.tags import ClassNames, TagLine, class_indices, special_name, split_cells
from more.errors import UserError
from tests.data_tools.layout import convert_voc, pictures, voc_folder
from tests.data_tools.test_folder import masks_for, run

NAMES = ["a.jpg", "b.png", "c.jpg"]
LIGHTS = {"a": ["traffic light"], "b": ["cat", "traffic light"], "c": []}


@pytest.fixture
def root(tmp_path):
    return pictures(tmp_path / "photos", NAMES)


def write(root, text, name="tags.csv"):
    path = root.parent / name
    path.write_text(text, encoding="utf-8")
    return path


def convert(root, text, name="tags.csv", out="set", **options):
    """Tags by id of the set that is made."""
    out = root.parent / out
    assert run(root, out, tags=write(root, text, name), **options) == 0
    shards = ShardSet(out)
    return {key: [shards.class_names[k] for k in shards.tags[row].nonzero()[0]]
            for row, key in enumerate(shards.ids)}


@pytest.mark.parametrize(("name", "text"), [
    ("tags.csv", 'filename,label\na.jpg,traffic light\nb.png,"cat, traffic light"\nc.jpg,\n'),
    ("tags.csv", "Image ID,Labels\na,traffic light\nb,cat|traffic light\nc,\n"),
    ("tags.csv", "id; tags\na.jpg; traffic light\nb.png; cat, traffic  light\nc.jpg;\n"),
    ("tags.csv", "id\ttags\na\ttraffic light\nb\tcat;traffic light\nc\t\n"),
    ("tags.csv", "image,choice\n/data/upload/1/a.jpg,traffic light\n"
                 "C:\\me\\b.png,\"[\"\"cat\"\", \"\"traffic light\"\"]\"\nc.jpg,\n"),
    ("tags.csv", "image,labels\na.jpg,['traffic light']\nb.png,\"['cat', 'traffic light']\"\n"
                 "c.jpg,[]\n"),
    ("_classes.csv", "filename, cat, traffic light, Unlabeled\na.jpg, 0, 1, 0\nb.png, 1, 1, 0\n"
                     "c.jpg, 0, 0, 1\n"),
    ("train.csv", "image_id;traffic light;cat\na;1.0;0.0\nb;True;1\nc;;\n"),
    ("boxes.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n"
                  "a.jpg,9,9,traffic light,1,1,2,2\na.jpg,9,9,traffic light,3,1,4,2\n"
                  "b.png,9,9,cat,1,1,2,2\nb.png,9,9,traffic light,1,1,2,2\nc.jpg,9,9,,,,,\n"),
    ("tags.json", json.dumps([{"image": "a.jpg", "labels": ["traffic light"]},
                              {"image": "b.png", "labels": "cat|traffic light"},
                              {"image": "c.jpg", "labels": ""}])),
    ("tags.jsonl", '{"file_name": "a.jpg", "tags": ["traffic light"]}\n\n'
                   '{"file_name": "b.png", "tags": ["traffic light", "cat"]}\n'
                   '{"file_name": "c.jpg", "tags": []}\n'),
])
def test_a_tag_with_a_blank_is_one_class_in_every_form(root, name, text):
    assert convert(root, text, name) == LIGHTS


def test_blanks_separate_where_the_words_stand_alone_elsewhere(root, capsys):
    assert convert(root, "id,tags\na,cat dog\nb,dog\nc,cat\n") == {
        "a": ["cat", "dog"], "b": ["dog"], "c": ["cat"]}
    assert "tags in a cell separated by blanks" in capsys.readouterr().err


@pytest.mark.parametrize(("separator", "expected"), [
    ("blank", ["light", "traffic"]), ("none", ["traffic light"]), ("pipe", ["traffic light"])])
def test_a_cell_that_may_be_one_tag_or_two_is_asked_about(root, separator, expected):
    text = "id,tags\na,traffic light\nb,cat\nc,\n"
    with pytest.raises(UserError, match="line 2: 'traffic light' may be one tag or several\n.*"
                                        "--tag-separator blank, comma"):
        convert(root, text)
    assert convert(root, text, tag_separator=separator)["a"] == expected
    with pytest.raises(UserError, match="--tag-separator slash: unknown\n.*blank"):
        convert(root, text, tag_separator="slash")


def test_two_separators_in_one_file_are_asked_about(root):
    with pytest.raises(UserError, match="may be one tag or several"):
        convert(root, 'id,tags\na,cat;dog\nb,"table, round"\nc,\n')


def test_known_classes_are_found_in_words_longest_first(root):
    classes = write(root, "cat\nlight\ntraffic light\nhot_dog\n", "names.txt")
    found = convert(root, "id,tags\na,traffic light cat\nb,light hot dog\nc,traffic_light\n",
                    classes=classes)
    assert found == {"a": ["cat", "traffic light"], "b": ["light", "hot_dog"],
                     "c": ["traffic light"]}
    assert tags_from_file(root.parent / "tags.csv", ["light", "traffic light", "cat", "hot_dog"])[
        "b"] == (0, 3)


def test_a_name_is_found_with_blank_or_underscore_where_only_one_is_meant():
    both = ClassNames(["traffic light", "traffic_light", "hot  dog"])
    assert both.find("traffic_light") == 1 and both.find("traffic light") == 0
    assert both.find("hot_dog") == 2 and both.find("traffic  light") is None
    assert class_indices(["Background", "cat"], ["cat"], "x") == (0,)
    with pytest.raises(UserError, match="x: unknown class 'cta'\n.*did you mean cat"):
        class_indices(["cta"], ["cat"], "x")


@pytest.mark.parametrize(("first", "kept"), [
    ("__ignore__\n_background_\n", True), ("__ignore__\n__background__\n", True),
    ("Background\n", True), ("__background__\n", True), ("unlabeled\n", True), ("BG\n", True),
    ("", True), ("_background_\n__ignore__\n", False), ("cat2\nbackground\n", False)])
def test_names_of_background_and_ignore_are_no_classes(tmp_path, capsys, first, kept):
    path = tmp_path / "class_names.txt"
    path.write_text(first + "cat\ntraffic light\n")
    if not kept:
        with pytest.raises(UserError, match="is no class, but has a number in the middle"):
            read_classes(tmp_path, None, ())
        return
    assert read_classes(tmp_path, None, ()) == ["cat", "traffic light"]
    said = capsys.readouterr().err
    assert ("no class" in said) == bool(first)
    assert all(name in said for name in first.split())


def test_special_names_in_any_writing():
    assert [special_name(name) for name in ("_BACKGROUND_", " bg", "__Ignore__", "void", "cat",
                                            "background car")] == [
        "background", "background", "ignore", "ignore", None, None]


def test_background_as_a_tag_is_no_class_and_is_said(root, capsys):
    assert convert(root, "id,tags\na,Background\nb,cat;background\nc,cat\n") == {
        "a": [], "b": ["cat"], "c": ["cat"]}
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no class: Background (1 images), background (1 images)" in said


def test_names_that_differ_in_case_only_are_refused_or_joined(root, capsys):
    text = "id,tags\na,Dog\nb,dog\nc,dog\n"
    with pytest.raises(UserError, match="'Dog' and 'dog' differ in case.*\n.*--join-names"):
        convert(root, text)
    assert convert(root, text, join_names=True) == {"a": ["dog"], "b": ["dog"], "c": ["dog"]}
    assert "joined with dog (2 images): Dog (1)" in capsys.readouterr().err


def test_joined_names_are_spelled_as_the_class_list_does(root):
    classes = write(root, "Hot Dog\n", "names.txt")
    assert convert(root, "id,tags\na,hot dog\nb,hot_dog\nc,\n", classes=classes,
                   tag_separator="none", join_names=True)["a"] == ["Hot Dog"]


def test_a_class_of_no_image_is_named(root, capsys):
    classes = write(root, "cat\ncow\n", "names.txt")
    convert(root, "id,tags\na,cat\nb,\nc,\n", classes=classes)
    assert "classes of no image: 1 (cow); without masks --drop-unused" in capsys.readouterr().err
    found = convert(root, "id,tags\na,cow\nb,\nc,\n", classes=classes, out="other",
                    drop_unused=True)
    assert found == {"a": ["cow"], "b": [], "c": []}
    assert ShardSet(root.parent / "other").class_names == ["cow"]
    assert "classes of no image, left out: 1 (cat)" in capsys.readouterr().err
    with pytest.raises(UserError, match="--drop-unused: numbers in masks follow"):
        run(root, root.parent / "third", classes=classes, drop_unused=True,
            tags=root.parent / "tags.csv", masks=masks_for(root.parent / "truth", NAMES))


def test_too_many_classes_name_the_tags_file(root):
    text = "id,tags\na," + "|".join(f"c{k}" for k in range(255)) + "\nb,\nc,\n"
    with pytest.raises(UserError, match="the tags of .*tags.csv: 255 class names; .* 1 to 254"):
        convert(root, text)


@pytest.mark.parametrize(("text", "message"), [
    ("a.jpg,cat\nb.png,dog\n", "first line 'a.jpg,cat' names no column of images.*\n.*id,tags"),
    ("id\na\n", "names no column of images"),
    ("", "first line '' names no column"),
    ("id,tags\na,cat,dog\n", "line 2: more cells.*\n.*one cell"),
    ("id,cat,width\na,1,640\n", "no column of tags, and width is '640', neither 0 nor 1"),
])
def test_what_is_no_tags_file_is_told_with_an_example(tmp_path, text, message):
    path = tmp_path / "tags.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_tag_file(path)


def test_a_folder_of_background_has_no_tag_and_one_of_the_unlabelled_is_refused(tmp_path):
    root = pictures(tmp_path / "photos", ["Background/a.jpg", "cat/b.jpg"])
    assert run(root, tmp_path / "set", tags_from_folders=True) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["cat"] and shards.tags.tolist() == [[0], [1]]
    (root / "Background").rename(root / "Unlabeled")
    with pytest.raises(UserError, match="folder 'Unlabeled': the tags of its 1 images are not"):
        run(root, tmp_path / "other", tags_from_folders=True)
    with pytest.raises(UserError, match="may be one tag.*\n.*the same sign in the whole file"):
        tags_from_file(write(root, "id,tags\na,cat;dog\nb,cat|dog\n"), ["cat", "dog"])


def test_voc_takes_tags_by_id_file_or_path(tmp_path):
    root = voc_folder(tmp_path / "voc", images=3)
    tags = write(root, "image;tags\nid0;cat\nJPEGImages/id1.jpg;cat|dog\n/me/VOC/id2.jpg;\n")
    assert convert_voc(root, tmp_path / "set", tags=tags) == 0
    assert ShardSet(tmp_path / "set").tags.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    write(root, "image;tags\nid0;cat\nid0.jpg;dog\nid1;\nid2;\n")
    with pytest.raises(UserError, match="two lines are about the image id0"):
        convert_voc(root, tmp_path / "other", tags=tags)


def test_cells_that_are_apart_stay_as_they_are():
    lines = {"a": TagLine("here", ("hot dog",)), "b": TagLine("there", (), "hot dog")}
    found, how = split_cells(lines, ["hot dog"])
    assert found["a"].names == found["b"].names == ("hot dog",) and how == ""
