"""COCO files as CVAT, Roboflow, Label Studio and others write them: values, regions, numbers."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_tools import coco_stream
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.coco_layout import SIZE, box, plain_folder, run, runs


def report(out):
    return ShardSet(out).manifest.extra["report"]


@pytest.mark.parametrize(("images", "annotations"), [
    (str, int), (int, str), (float, int), (int, float), (lambda k: f"{k}.0", int), (str, float)])
def test_ids_of_images_match_by_value(tmp_path, capsys, images, annotations):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["images"]:
        item["id"] = images(item["id"])
    for item in folder.content["annotations"]:
        item["image_id"] = annotations(item["image_id"])
    assert run(folder.write(), tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").tags.argmax(1).tolist() == [0, 1, 2] * 4
    assert "12 annotations whose image_id has another type" in capsys.readouterr().err


def test_most_annotations_of_no_image_stop_the_conversion(tmp_path):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["annotations"][5:]:
        item["image_id"] += 5000
    folder.write()
    with pytest.raises(UserError, match="7 of 12 annotations belong to no image of the file: "
                       "image_id 5111, while images have ids such as 100"):
        run(folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert run(folder, tmp_path / "set", skip_bad=True) == 0
    assert report(tmp_path / "set")["unlisted_images"] == 7


@pytest.mark.parametrize("of_annotations", [True, False])
def test_ids_of_categories_may_be_texts(tmp_path, of_annotations):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["annotations" if of_annotations else "categories"]:
        key = "category_id" if of_annotations else "id"
        item[key] = str(item[key])
    assert run(folder.write(), tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").tags.argmax(1).tolist() == [0, 1, 2] * 4


def test_ids_above_64_bits(tmp_path):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["images"]:
        item["id"] += 2**70
    for item in folder.content["annotations"]:
        item.update(image_id=item["image_id"] + 2**70, id=item["id"] + 2**64)
    assert run(folder.write(), tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").tags.argmax(1).tolist() == [0, 1, 2] * 4


def test_nan_and_infinity_in_numbers(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    first, second = folder.content["annotations"][:2]
    first.update(area=float("nan"), bbox=[float("-inf"), 0, float("inf"), 1])
    second["segmentation"] = [[1.0, float("nan"), 5, 5, 1, 5], box(0, 0, 3, 3)]
    assert run(folder.write(), tmp_path / "set") == 0
    said, shards = capsys.readouterr().err, ShardSet(tmp_path / "set")
    assert "4 numbers NaN or Infinity in the file" in said
    assert "1 polygons with NaN or Infinity (not drawn)" in said
    assert shards.mask(0).any() and (shards.mask(1) == 2).sum() == 9


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_json_in_other_encodings(tmp_path, encoding):
    folder = plain_folder(tmp_path / "coco")
    folder.content["categories"][0]["name"] = "straße 🐕"
    folder.write()
    folder.json.write_bytes(json.dumps(folder.content, ensure_ascii=False).encode(encoding))
    assert run(folder, tmp_path / "set") == 0
    assert ShardSet(tmp_path / "set").class_names[1] == "straße 🐕"


def test_numbers_are_made_plain_wherever_the_pieces_end(monkeypatch):
    """Texts stay as they are, also with quotes inside, and decimals of any length."""
    text = (r'{"NaN": "a \"NaN\" 12345678901234567890", "b": [NaN, -Infinity, '
            r'12345678901234567890123, 0.12345678901234567890123, -98765432109876543210, "x\\"]}')
    wanted = {"NaN": 'a "NaN" 12345678901234567890', "b": [
        None, None, "12345678901234567890123", 0.12345678901234567890123, "-98765432109876543210",
        "x\\"]}
    for step in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(coco_stream, "_MB", step)
        stream = coco_stream.PlainNumbers(io.BytesIO(text.encode()))
        data = b"".join(iter(partial(stream.read, 5), b""))
        assert json.loads(data) == wanted and (stream.odd, stream.long) == (2, 2)


def test_a_set_of_negatives_without_annotation(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    folder.content["annotations"] = []
    assert run(folder.write(), tmp_path / "set") == 0
    assert "all of them are negatives" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set")
    assert not shards.tags.any() and not shards.mask(0).any() and len(shards) == 12


def test_boxes_without_segmentation_name_no_masks(tmp_path):
    folder = plain_folder(tmp_path / "coco")
    for k, item in enumerate(folder.content["annotations"]):
        item["segmentation"] = []
        if k % 2:
            item.pop("segmentation")
    folder.write()
    with pytest.raises(UserError, match="no annotation has a segmentation") as caught:
        run(folder, tmp_path / "set")
    assert "--no-masks" in caught.value.fix and not (tmp_path / "set").exists()
    assert run(folder, tmp_path / "set", masks=False) == 0
    assert ShardSet(tmp_path / "set").tags.argmax(1).tolist() == [0, 1, 2] * 4


def test_a_box_among_polygons_is_a_tag(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    folder.content["annotations"][0].pop("segmentation")
    assert run(folder.write(), tmp_path / "set") == 0
    assert "1 annotations without segmentation (tag only)" in capsys.readouterr().err


def crowded(tmp_path, crowds, value=1):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["annotations"][:crowds]:
        item.update(iscrowd=value, segmentation=runs(4, 0, 12, 32))
    return folder.write()


def test_more_than_half_crowds_are_said_loudly_and_drawn_on_request(tmp_path, capsys):
    folder = crowded(tmp_path, 7)
    for _ in range(2):  # also when the set is finished already
        assert run(folder, tmp_path / "set") == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "WARNING: 7 of 12 regions are crowds" in said and "--crowds draw" in said
    assert set(ShardSet(tmp_path / "set").mask(0).flat) == {0, 255}
    assert run(folder, tmp_path / "drawn", crowds="draw") == 0
    assert "WARNING" not in capsys.readouterr().err
    assert set(ShardSet(tmp_path / "drawn").mask(0).flat) == {0, 1}
    assert report(tmp_path / "drawn")["crowd_regions"] == 7
    with pytest.raises(UserError, match="draw_crowds"):
        run(folder, tmp_path / "set", crowds="draw")
    with pytest.raises(UserError, match="--crowds sometimes"):
        run(folder, tmp_path / "set", crowds="sometimes")


def test_half_of_the_regions_being_crowds_is_no_warning(tmp_path, capsys):
    assert run(crowded(tmp_path, 6), tmp_path / "set") == 0
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize(("value", "crowd"), [
    ("0", False), ("false", False), (None, False), (False, False), ("1", True), (True, True)])
def test_iscrowd_as_text(tmp_path, value, crowd):
    assert run(crowded(tmp_path, 1, value), tmp_path / "set") == 0
    assert (255 in ShardSet(tmp_path / "set").mask(0)) == crowd


def test_iscrowd_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"annotations\[0\]: iscrowd 'perhaps'"):
        run(crowded(tmp_path, 1, "perhaps"), tmp_path / "set")


@pytest.mark.parametrize("polygon", [
    [0.1, 0.1, 0.4, 0.1, 0.4, 0.4, 0.1, 0.4],          # parts of the image
    [5, 5, 5, 10, 5, 15], [3, 3, 9, 9, 6, 6],          # points on a line
    [40, 2, 60, 2, 60, 9, 40, 9]])                     # beside the image
def test_polygons_that_draw_no_pixel_are_counted(tmp_path, capsys, polygon):
    folder = plain_folder(tmp_path / "coco")
    folder.content["annotations"][0]["segmentation"] = [polygon]
    folder.content["annotations"][1]["segmentation"].append(polygon)
    folder.content["annotations"][2]["segmentation"] = {"size": [*SIZE], "counts": [768]}
    assert run(folder.write(), tmp_path / "set") == 0
    assert "3 polygons or run lengths that draw no pixel" in capsys.readouterr().err
    shards = ShardSet(tmp_path / "set")
    assert not shards.mask(0).any() and not shards.mask(2).any() and shards.tags[0].any()


@pytest.mark.parametrize("seed", range(3))
def test_the_count_of_polygons_without_a_pixel_is_exact(tmp_path, seed):
    """Thin and small polygons of every kind, against drawing each."""
    rng, folder = np.random.default_rng(seed), plain_folder(tmp_path / "coco")
    polygons = [(rng.uniform(-4, 34, 2) + rng.normal(0, 1, (rng.integers(3, 9), 2))
                 * rng.choice([0.1, 0.5, 2, 20], 2)).reshape(-1).tolist() for _ in range(400)]
    folder.content["annotations"][0]["segmentation"] = polygons
    assert run(folder.write(), tmp_path / "set") == 0
    empty = [not coco_mask.decode(coco_mask.frPyObjects([one], *SIZE)).any() for one in polygons]
    assert 20 < sum(empty) < 380 and report(tmp_path / "set")["no_pixel"] == sum(empty)


def test_coordinates_from_0_to_1_are_said_loudly(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    for item in folder.content["annotations"][:7]:
        item["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]
    assert run(folder.write(), tmp_path / "set") == 0
    assert "WARNING: 7 polygons or run lengths draw no pixel" in " ".join(
        capsys.readouterr().err.split())


def test_a_flat_polygon_is_drawn(tmp_path, capsys):
    folder = plain_folder(tmp_path / "coco")
    folder.content["annotations"][0]["segmentation"] = box(0, 0, 4, 4)
    assert run(folder.write(), tmp_path / "set") == 0
    assert (ShardSet(tmp_path / "set").mask(0) == 1).sum() == 16
    assert "1 polygons written as a plain list of numbers" in capsys.readouterr().err
