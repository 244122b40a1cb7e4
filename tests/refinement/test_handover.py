"""Masks leave as files and come back: the quickstart's own steps, small, then every format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from more.data.shards.reader import ShardSet
from tests import processes
from tests.code import FILE
from tests.train.conftest import command, tiny  # noqa: F401


@pytest.fixture(scope="module")
def masks(tiny, tmp_path_factory) -> Path:  # noqa: F811
    """Masks that the commands of the quickstart make of drawn shapes, in a few updates."""
    root = tmp_path_factory.mktemp("quickstart")
    for words in (("train", tiny["config"], "--train", tiny["train"], "--run", root / "run"),
                  ("localize", "--run", root / "run", "--data", tiny["train"],
                   "--out", root / "seeds"),
                  ("refine", root / "seeds", "--data", tiny["train"], "--out", root / "masks",
                   "--workers", 1)):
        done = command(*words)
        assert done.returncode == 0, done.stderr
    made = ShardSet(root / "masks")
    assert len(made) == 24 and len({value for row in made for value in made.mask(row).flat}) > 2
    return root / "masks"


def test_the_supervised_example_trains_on_the_masks_of_the_quickstart(
        masks, tiny, tmp_path):  # noqa: F811
    done = command("export", masks, "--format", "training", "--data", tiny["train"],
                   "--out", tmp_path / "out", "--val-share", 0.2)
    assert done.returncode == 0, done.stderr
    ended = processes.run("tests.code", FILE, "", tmp_path / "out" / "train_example.py",
                          "--crop", 64, "--epochs", 2, "--batch", 4)
    assert ended.returncode == 0, ended.stderr
    assert "19 images to train on, 5 to validate, 8 classes" in ended.stdout
    losses = [float(line.split("loss ")[1].split(",")[0])
              for line in ended.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 2 and losses[1] < losses[0]  # ten steps on masks that can be learned
    assert (tmp_path / "out" / "model.pt").is_file()


def same_masks(masks: Path, again: Path) -> bool:
    """Both sets hold the same label map under every id."""
    ours, theirs = ShardSet(masks), ShardSet(again)
    assert sorted(ours.ids) == sorted(theirs.ids) and ours.class_names == theirs.class_names
    return all((ours.mask(row) == theirs.mask(theirs.index_of(name))).all()
               for row, name in enumerate(ours.ids))


@pytest.mark.parametrize("palette", ["--palette", "--no-palette"])
def test_png_masks_come_back_equal(masks, tiny, tmp_path, run, palette):  # noqa: F811
    out = tmp_path / "png"
    assert run("more", "export", masks, "--out", out, palette).code == 0
    pictures, made = tmp_path / "pictures", ShardSet(masks)
    pictures.mkdir()
    for name in made.ids:
        shutil.copy(tiny["folder"] / "voc" / "JPEGImages" / f"{name}.jpg", pictures)
    ended = run("folder", pictures, tmp_path / "set", "--masks", out,
                "--classes", out / "classes.txt", "--workers", 1)
    assert ended.code == 0 and "left out" not in ended.err
    assert same_masks(masks, tmp_path / "set")


def test_the_training_folder_comes_back_equal(masks, tiny, tmp_path, run):  # noqa: F811
    out = tmp_path / "training"
    assert run("more", "export", masks, "--format", "training", "--data", tiny["train"],
               "--out", out).code == 0
    assert run("folder", out, tmp_path / "set", "--workers", 1).code == 0
    assert same_masks(masks, tmp_path / "set")


def test_run_lengths_come_back_equal(masks, tiny, tmp_path, run):  # noqa: F811
    out = tmp_path / "masks.json"
    assert run("more", "export", masks, "--format", "rle", "--data", tiny["train"],
               "--out", out).code == 0
    assert run("coco", out, tiny["folder"] / "voc" / "JPEGImages", tmp_path / "set",
               "--workers", 1).code == 0
    assert same_masks(masks, tmp_path / "set")
