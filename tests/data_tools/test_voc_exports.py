"""Exports of annotation tools in VOC's layout, as they are: CVAT, labelme, Label Studio."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_tools.voc import main
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.layout import save_mask, save_picture
from tests.data_tools.test_mask_meaning import halves

COLOURS = {"background": (0, 0, 0), "cat": (250, 50, 83), "dog": (51, 221, 255)}


def run(root, out, **options):
    return main(root, out, **{
        "split": None, "tags": None, "tags_from": "auto", "classes": None, "masks": "auto",
        "sbd": None, "shard_size": 5, "workers": 1, "skip_bad": False, **options})


def cvat(root, names=("a.jpg", "b.png"), palette=False):
    """CVAT's "Segmentation mask 1.1": colour masks, a label map, one list, no Annotations."""
    for name in names:
        save_picture(root / "JPEGImages" / name)
        for folder in ("SegmentationClass", "SegmentationObject"):
            path = (root / folder / name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(halves(COLOURS["background"], COLOURS["dog"]))
            (image.quantize(4) if palette else image).save(path)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    stems = [name.rpartition(".")[0] for name in names]
    (lists / "default.txt").write_text("".join(
        f'"{stem}"\n' if " " in stem else f"{stem}\n" for stem in stems))
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{','.join(map(str, colour))}::\n" for name, colour in COLOURS.items()))
    return root


@pytest.mark.parametrize("palette", [False, True])
def test_cvats_segmentation_masks_as_they_are(tmp_path, palette, capsys):
    assert run(cvat(tmp_path / "v", palette=palette), tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == ["a", "b"] and shards.class_names == ["cat", "dog"]
    assert shards.mask(0)[::12, 0].tolist() == [0, 2] and shards.tags.tolist() == [[0, 1]] * 2
    said = " ".join(capsys.readouterr().err.split())
    assert "labelmap.txt" in said and "masks: 2 from SegmentationClass" in said
    assert shards.manifest.provenance["parameters"]["split"] == "default"


def test_cvats_names_with_blanks_and_folders(tmp_path):
    """The first word of a line is not the whole name."""
    names = ("my photo 1.jpg", "day two/b.jpg", "day/c.d.jpg")
    assert run(cvat(tmp_path / "v", names), tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").ids == ["my photo 1", "day two__b", "day__c.d"]
    assert ShardSet(tmp_path / "set").tags.tolist() == [[0, 1]] * 3


def test_several_lists_need_a_choice(tmp_path):
    root = cvat(tmp_path / "v")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")
    with pytest.raises(UserError) as caught:
        run(root, tmp_path / "set")
    assert "choose one with --split: default, val" in str(caught.value)
    assert run(root, tmp_path / "set", split="val") == 0
    assert ShardSet(tmp_path / "set").ids == ["b"]


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassPNG"])
def test_labelmes_voc_folder_as_it_is(tmp_path, folder):
    """Palette masks where 255 is __ignore__, class_names.txt, no lists, arrays beside (old)."""
    root = tmp_path / "v"
    for name in ("a", "b"):
        save_picture(root / "JPEGImages" / f"{name}.jpg")
        (root / folder).mkdir(parents=True, exist_ok=True)
        save_mask(root / folder / f"{name}.png", halves(0, 2, 255))
        (root / "SegmentationClass").mkdir(exist_ok=True)
        np.save(root / "SegmentationClass" / f"{name}.npy", halves(0, 2))
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    assert run(root, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["cat", "dog"] and shards.ids == ["a", "b"]
    assert shards.mask(1)[::8, 0].tolist() == [0, 2, 255] and shards.tags.tolist() == [[0, 1]] * 2


def test_label_studios_pascal_voc_as_it_is(tmp_path):
    """images/ and Annotations/ with boxes: tags, with the classes that the boxes name."""
    root = tmp_path / "v"
    (root / "Annotations").mkdir(parents=True)
    for name, tag in (("a", "coin"), ("b", "stamp")):
        save_picture(root / "images" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>{tag}</name></object></annotation>")
    assert run(root, tmp_path / "set") == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["coin", "stamp"] and shards.tags.tolist() == [[1, 0], [0, 1]]


def test_binary_masks_in_a_voc_folder(tmp_path):
    root = tmp_path / "v"
    save_picture(root / "JPEGImages/a.jpg")
    (root / "SegmentationClass").mkdir()
    save_mask(root / "SegmentationClass/a.png", halves(0, 255))
    with pytest.raises(UserError, match="only 0 .* and 255 .ignore"):
        run(root, tmp_path / "set")
    assert run(root, tmp_path / "set", mask_values=["255=coin"]) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["coin"] and shards.tags.tolist() == [[1]]


def test_a_folder_of_another_layout_is_sent_to_its_own_tool(tmp_path):
    save_picture(tmp_path / "v/a.jpg")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "v", tmp_path / "set")
    assert "data_tools.folder" in str(caught.value)
