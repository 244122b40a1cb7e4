"""The drawn set: deterministic, in VOC layout, with the properties that it promises."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from data_tools.shapes import DRAWING, RECORD, draw_scene, make_shapes
from data_tools.shapes_draw import ALONE, CLASSES, TRAIN, WITH_TRAIN, Pose, texture
from more.errors import UserError
from more.palette import PALETTE


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
        assert mask.mode == "P" and mask.getpalette() == PALETTE.flatten().tolist()
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


@pytest.mark.parametrize("drawing", [1, None, 3])
@pytest.mark.parametrize("complete", [True, False])
def test_a_set_of_another_drawing_is_refused_by_its_number(tmp_path, drawing, complete):
    """Its pictures are others, whatever its parameters: it is neither finished nor mixed."""
    make_shapes(tmp_path, 2, 0, 64, 0, 1)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["drawing"] == DRAWING == 2
    old = {**record, "drawing": drawing, "complete": complete}
    if drawing is None:  # as the first version wrote it
        del old["drawing"]
    (tmp_path / RECORD).write_text(json.dumps(old))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"drawn as number {drawing} of the shapes set") as caught:
        make_shapes(tmp_path, 2, 0, 64, 0, 1)
    assert f"draws number {DRAWING}" in caught.value.message
    assert "delete this folder" in caught.value.fix and "runs" in caught.value.fix
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="drawn as number"):  # other parameters: the same reason
        make_shapes(tmp_path, 3, 0, 64, 0, 1)


def test_a_star_has_rings_around_its_middle():
    """Its texture depends on the distance alone, so patches of it show its form; dots do not."""
    window, found = (slice(0, 96), slice(0, 96)), {}
    for name in ("star", "ball"):
        pose = Pose(47.3, 50.6, 30, 0.7)
        u, v = pose.grid(window)
        pattern = texture(name, pose, window, np.random.default_rng(3))
        order = np.hypot(u, v).ravel().argsort()
        near = np.diff(np.hypot(u, v).ravel()[order]) < 1e-3
        found[name] = np.abs(np.diff(pattern.ravel()[order]))[near].max()
        assert near.sum() > 1000 and pattern.min() == 0 and pattern.max() == 1
    assert found["star"] < 0.1 < 0.5 < found["ball"]
    line = texture("star", Pose(0, 0, 30, 0), (slice(0, 1), slice(0, 36)),
                   np.random.default_rng(3))[0]
    edges = np.flatnonzero(np.diff((line > 0.5).astype(int)))
    assert len(edges) >= 6 and np.isin(np.diff(edges), (3, 4, 5)).all(), "a few pixels wide"


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
