"""The drawn set: deterministic, in VOC layout, with the properties that it promises."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from data_tools.shapes import draw_scene, make_shapes, voc_palette
from data_tools.shapes_draw import ALONE, CLASSES, TRAIN, WITH_TRAIN
from more.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "set"
    tally = make_shapes(out, images=30, val=6, size=64, seed=1, workers=1)
    assert (tally.done, tally.skipped, tally.exit_code) == (36, 0, 0)
    return out


def names(folder, split):
    return (folder / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()


def test_layout(folder):
    assert len(names(folder, "train")) == 30 and len(names(folder, "val")) == 6
    assert not set(names(folder, "train")) & set(names(folder, "val"))
    assert (folder / "classes.txt").read_text().split() == ["background", *CLASSES]
    with open(folder / "tags.csv") as file:
        tags = {row["id"]: row["tags"].split() for row in csv.DictReader(file)}
    for name in names(folder, "train"):
        mask = Image.open(folder / "SegmentationClass" / f"{name}.png")
        assert mask.mode == "P" and mask.getpalette()[:12] == voc_palette()[:12]
        present = [CLASSES[value - 1] for value in np.unique(np.asarray(mask)) if value]
        assert present == tags[name] and 1 <= len(present) <= 3
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as image:
            assert image.size == mask.size == (64, 64) and image.mode == "RGB"


def test_same_seed_same_files(folder, tmp_path):
    make_shapes(tmp_path / "b", images=30, val=6, size=64, seed=1, workers=2)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(folder)).read_bytes()
    assert not np.array_equal(draw_scene(1, 0, 64).image, draw_scene(2, 0, 64).image)


def test_rerun_does_nothing_and_other_parameters_are_refused(folder):
    """Fault 25."""
    assert make_shapes(folder, 30, 6, 64, 1, 1).skipped == 36
    with pytest.raises(UserError, match="another set is in this folder"):
        make_shapes(folder, 30, 6, 64, 2, 1)
    with pytest.raises(UserError, match="at least 48 px"):
        make_shapes(folder.parent / "c", 30, 6, 20, 1, 1)


def test_scenes_keep_their_promises():
    scenes = [draw_scene(0, index, 64) for index in range(300)]
    shares = np.array([[(scene.mask == k + 1).mean() for k in range(len(CLASSES))]
                       for scene in scenes])
    counts = (shares > 0).sum(1)
    assert counts.min() == 1 and counts.max() == 3
    assert (shares > 0).mean(0).min() > 0.15 and shares.max() < 0.45
    assert 0.02 < np.percentile(shares[shares > 0], 5)
    assert all(scene.image.std() > 15 for scene in scenes)
    trains = (shares[:, TRAIN] > 0).mean()
    track = trains * WITH_TRAIN + (1 - trains) * ALONE
    assert 0.8 < trains * WITH_TRAIN / track < 0.97  # a track means a train, mostly


def test_palette_is_that_of_voc():
    palette = np.array(voc_palette()).reshape(256, 3)
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
