"""Images per class at the end of a conversion, and the warning about classes with few pictures."""

from __future__ import annotations

import json
import re

import numpy as np

from data_tools import inspect, shapes
from data_tools.class_table import show_counts, show_sets
from more.data.class_counts import FEW, class_counts, few_note
from tests.data.sets import small_set
from tests.data_tools.layout import convert_voc, pictures, tool, voc_folder
from tests.data_tools.test_folder import run


def rows(text):
    """Cells of the table's rows, heading left out."""
    return [re.sub("[│┃|]", " ", line).split() for line in text.splitlines() if line[:1] == "│"]


def test_counts_are_sorted_and_equals_keep_their_order():
    tags = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [0, 1, 1, 1]], np.uint8)
    counts = class_counts(["a", "b", "c", "d"], tags)
    assert list(counts.items()) == [("b", 3), ("c", 2), ("d", 2), ("a", 0)]


def test_a_class_is_named_from_one_image_below_the_bound():
    assert few_note({"cat": FEW, "dog": FEW + 1}) is None
    note = few_note({"cat": FEW, "dog": 3, "cow": FEW - 1})
    assert f"fewer than {FEW} images: cow {FEW - 1}, dog 3;" in note and "cat" not in note


def test_a_folder_in_two_sets_is_one_table(tmp_path, capsys):
    names = [f"{k}.jpg" for k in range(10)]
    tags = tmp_path / "tags.csv"
    tags.write_text("id,tags\n" + "".join(f"{k},{'cat' if k < 3 else 'dog'}\n" for k in range(10)))
    (tmp_path / "some.txt").write_text("0\n1\n3\n")
    assert run(pictures(tmp_path / "photos", names), tmp_path / "sets", tags=tags,
               split=[f"val={tmp_path / 'some.txt'}", "train=1.0"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"class +[│┃] val +[│┃] train", said)
    assert rows(said) == [["dog", "1", "6"], ["cat", "2", "1"]]
    assert "warning: val: fewer than 20 images: cat 2, dog 1" in said
    assert said.index("images per class") < said.index("images: done 10")


def test_voc_prints_it_also_when_nothing_is_left_to_do(tmp_path, capsys):
    root = voc_folder(tmp_path / "voc")
    for _ in range(2):
        assert convert_voc(root, tmp_path / "set") == 0
        assert rows(capsys.readouterr().err) == [["cat", "4"], ["dog", "4"], ["cow", "4"]]


def test_drawn_shapes(tmp_path, capsys):
    for _ in range(2):
        assert shapes.main(tmp_path / "shapes", 12, 4, 64, 0, 1) == 0
        said = capsys.readouterr().err
        assert len(rows(said)) == len(shapes.CLASSES) and "warning: train:" in said
    found = shapes.images_per_class(tmp_path / "shapes")
    lines = (tmp_path / "shapes" / "tags.csv").read_text().splitlines()[1:]
    for name in shapes.CLASSES:
        assert found["train"][name] == sum(name in line for line in lines[:12])


def test_without_tags_one_line_says_so(tmp_path, capsys):
    show_counts({"set": {"cat": 0, "dog": 0}})
    show_sets({"absent": tmp_path / "absent"})
    assert capsys.readouterr().err == "set: no image has a tag\n"


def test_a_set_that_cannot_be_opened_is_named(tmp_path, capsys):
    path = small_set(tmp_path / "set")
    next(path.glob("*.h5")).unlink()
    show_sets({"set": path})
    assert "images per class of set are not known: " in capsys.readouterr().err


def test_inspect_sorts_and_warns(tmp_path):
    path = small_set(tmp_path / "set")
    assert "warning: fewer than 20 images: cat 5, dog 5, cow 5" in " ".join(
        tool("inspect", path).stdout.split())
    facts = json.loads(tool("inspect", path, "--json").stdout)
    assert list(facts["classes"]) == ["cat", "dog", "cow"], "in the classes' order"
    assert inspect.few_note(facts["classes"])
