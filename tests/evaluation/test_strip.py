"""The picture with captions: which images, which columns, what it asks for."""

from __future__ import annotations

import json
import shutil

import cv2
import matplotlib.axes
import numpy as np
import pytest

from more.errors import UserError
from more.evaluation.strip import draw_strip
from tests.evaluation.conftest import LAM, REFINED, mask_payload, seed_payload, write_set


@pytest.fixture
def run(rows, data, tmp_path):
    """A run with seeds and masks of all images, and a stage two with masks of some."""
    run = tmp_path / "run"
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM)
    write_set(run / "masks" / "lam", "masks", rows, mask_payload, REFINED)
    write_set(run / "two" / "masks" / "val", "masks", rows[:4], mask_payload, REFINED)
    for folder in (run, run / "two"):
        (folder / "run.json").write_text(json.dumps({"train": str(data)}))
    return run


@pytest.fixture
def shown(monkeypatch):
    """Titles of columns, and pictures, in the order in which they are drawn."""
    seen = {"titles": [], "pictures": []}
    title, imshow = matplotlib.axes.Axes.set_title, matplotlib.axes.Axes.imshow
    monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda self, text, **how: (
        seen["titles"].append(text), title(self, text, **how))[1])
    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", lambda self, picture, **how: (
        seen["pictures"].append(picture), imshow(self, picture, **how))[1])
    return seen


def test_rows_of_both_stages_with_their_captions(run, shown, tmp_path):
    out = draw_strip(run, tmp_path / "new" / "strip.png", images=2)
    assert shown["titles"] == ["image", "LAM", "mask after CRF", "truth",
                               "image", "stage two, after CRF", "truth"]
    assert len(shown["pictures"]) == 2 * 4 + 2 * 3
    assert cv2.imread(str(out)).shape[0] > 300


def test_masks_find_their_images_by_the_seeds_they_came_from(run, rows, data, shown, tmp_path):
    (run / "two" / "run.json").write_text(json.dumps({"train": "elsewhere"}))
    write_set(run / "two" / "seeds" / "val", "seeds", rows[:4], seed_payload, LAM,
              extra={"data": str(data)})
    draw_strip(run, tmp_path / "strip.png", images=1)
    assert "stage two, after CRF" in shown["titles"]


def test_a_run_that_was_moved_finds_the_set_inside_it(run, data, shown, tmp_path):
    for folder in (run, run / "two"):
        (folder / "run.json").write_text(json.dumps({"train": "where/it/was"}))
    with pytest.raises(UserError, match="images were not found"):
        draw_strip(run, tmp_path / "strip.png", images=1)
    shutil.copytree(data, run / "data")
    draw_strip(run, tmp_path / "strip.png", images=1)
    assert shown["titles"].count("image") == 2


def test_images_are_random_and_repeatable(run, rows, shown, tmp_path):
    for seed in (0, 0, 1):
        draw_strip(run, tmp_path / "strip.png", images=3, seed=seed)
    first, again, other = (shown["pictures"][start::21][0] for start in (0, 21, 42))
    originals = [row.image for row in rows]
    assert np.array_equal(first, again) and first.shape == again.shape
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert any(image.shape == first.shape for image in originals)


def test_without_masks_it_says_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no masks to show"):
        draw_strip(tmp_path / "run", tmp_path / "strip.png", images=1)


@pytest.mark.parametrize("name", ["strip", "strip.xyz", "strip.v2"])
def test_another_ending_is_refused_before_the_work(run, shown, tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: its ending says no format"):
        draw_strip(run, tmp_path / name, images=1)
    assert not shown["pictures"]
    draw_strip(run, tmp_path / "strip.PNG", images=1)
    assert (tmp_path / "strip.PNG").is_file()
