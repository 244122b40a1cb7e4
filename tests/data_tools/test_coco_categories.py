"""Categories of COCO files: names twice, background, roots, names that differ in case only."""

from __future__ import annotations

import pytest

from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.coco_layout import box, plain_folder, run


def folder_of(root, categories, owners):
    """Images whose annotation k has category owners[k]; categories are (id, name, super)."""
    folder = plain_folder(root, images=len(owners))
    folder.content["categories"] = [
        {"id": number, "name": name, "supercategory": above} for number, name, above in categories]
    for item, owner in zip(folder.content["annotations"], owners, strict=True):
        item["category_id"] = owner
    return folder.write()


def values(shards):
    return [sorted(set(shards.mask(k).flat) - {0}) for k in shards]


def test_a_category_with_a_blank_keeps_it(tmp_path):
    folder = folder_of(tmp_path / "coco", [(1, " traffic \t light ", "")], [1])
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").class_names == ["traffic light"]


def test_two_categories_of_one_name_are_joined(tmp_path, capsys):
    """Roboflow writes the group's name first, often that of the only class."""
    folder = folder_of(tmp_path / "coco", [(0, "coin", "none"), (1, "coin", "coin")], [1, 1, 0])
    assert run(folder, tmp_path / "set") == 0
    said, shards = capsys.readouterr().err, ShardSet(tmp_path / "set")
    assert shards.class_names == ["coin"] and values(shards) == [[1]] * 3
    assert "1 categories joined" in said and "category 1 (coin) joins class coin" in said
    assert shards.manifest.extra["categories"] == [
        {"index": 1, "id": 0, "name": "coin", "supercategory": "none", "joined_ids": [1]}]


def test_a_root_category_that_owns_nothing_is_no_class(tmp_path, capsys):
    folder = folder_of(tmp_path / "coco", [
        (0, "animals", "none"), (1, "cat", "animals"), (2, "dog", "animals")], [2, 1, 2])
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["cat", "dog"] and values(shards) == [[2], [1], [2]]
    assert shards.tags.tolist() == [[0, 1], [1, 0], [0, 1]]
    said = " ".join(capsys.readouterr().err.split())
    assert "category 0 (animals) is no class: supercategory of others" in said
    assert shards.manifest.extra["categories_left_out"][0]["id"] == 0


def test_a_root_category_with_annotations_stays(tmp_path, capsys):
    folder = folder_of(tmp_path / "coco", [(0, "animals", ""), (1, "cat", "animals")], [0, 1])
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").class_names == ["animals", "cat"]
    assert "supercategories with annotations of their own stay classes: animals" in " ".join(
        capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["Background", "__background__", "BG", "_background_"])
def test_background_is_no_class(tmp_path, capsys, name):
    folder = folder_of(tmp_path / "coco", [(0, name, ""), (1, "cat", ""), (2, "dog", "")],
                       [0, 1, 2])
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["cat", "dog"] and values(shards) == [[], [1], [2]]
    assert shards.tags.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert "1 annotations of background (left out)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ignore", "__ignore__", "Void", "unlabeled"])
def test_ignore_is_255_and_no_tag(tmp_path, capsys, name):
    folder = folder_of(tmp_path / "coco", [(1, "cat", ""), (7, name, ""), (9, "dog", "")],
                       [1, 7, 9])
    assert run(folder, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert values(shards) == [[1], [255], [2]]
    assert shards.tags.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert "1 annotations of an ignored category (255, no tag)" in capsys.readouterr().err


def test_unused_categories_stay_and_are_named_or_dropped_on_request(tmp_path, capsys):
    """Class numbers must not depend on what one file of a data set happens to show."""
    folder = folder_of(tmp_path / "coco", [(1, "cat", ""), (2, "cow", ""), (3, "dog", "")], [1, 3])
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").class_names == ["cat", "cow", "dog"]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 classes without an annotation stay classes: cow (--drop-unused" in said
    assert run(folder, tmp_path / "less", drop_unused=True) == 0
    shards = ShardSet(tmp_path / "less")
    assert shards.class_names == ["cat", "dog"] and values(shards) == [[1], [2]]
    assert shards.tags.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match="drop_unused"):
        run(folder, tmp_path / "set", drop_unused=True)


def test_a_list_of_images_does_not_change_the_classes(tmp_path):
    """Unused is what the whole file does not name."""
    folder = folder_of(tmp_path / "coco", [(1, "cat", ""), (2, "dog", "")], [1, 2])
    (tmp_path / "list.txt").write_text("000000000001\n")
    assert run(folder, tmp_path / "set", list_file=tmp_path / "list.txt", drop_unused=True) == 0
    assert ShardSet(tmp_path / "set").class_names == ["cat", "dog"]


def test_names_that_differ_in_case_are_named_or_joined_on_request(tmp_path, capsys):
    folder = folder_of(tmp_path / "coco", [(1, "Dog", ""), (2, "dog", ""), (3, "cat", "")],
                       [1, 2, 3])
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").class_names == ["Dog", "dog", "cat"]
    said = " ".join(capsys.readouterr().err.split())
    assert "'Dog' and 'dog' differ in case, blanks or underscores only" in said
    assert run(folder, tmp_path / "joined", join_alike=True) == 0
    shards = ShardSet(tmp_path / "joined")
    assert shards.class_names == ["Dog", "cat"] and values(shards) == [[1], [1], [2]]


def test_nothing_but_background_is_refused(tmp_path):
    folder = folder_of(tmp_path / "coco", [(0, "background", "")], [0])
    folder.add(100, 0, [box(0, 0, 2, 2)])
    with pytest.raises(UserError, match="0 categories|no class"):
        run(folder.write(), tmp_path / "set")
