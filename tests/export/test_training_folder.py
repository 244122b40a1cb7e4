"""The folder for supervised training: files, lists, repair, and the example script runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from more.data.shards.codec import encode_mask
from more.data.shards.lock import LOCK, folder_lock
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.data.split_parts import assign, parse_parts
from more.errors import UserError
from more.export import training_folder as training
from more.export.output_files import replace_file
from more.export.training_folder import export_training, split
from tests import processes
from tests.code import FILE
from tests.command.conftest import refused
from tests.data.sets import NAMES, small_set
from tests.refinement.sets import CLASSES, make_sets

STUB = """\
import torch


def Unet(encoder_name, encoder_weights, in_channels, classes):
    return torch.nn.Conv2d(in_channels, classes, 3, padding=1)
"""


@pytest.fixture
def data(tmp_path) -> Path:
    """Fifteen images with masks in three shards; they serve as masks, too."""
    return small_set(tmp_path / "data")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_images_masks_and_lists(data, tmp_path):
    out = tmp_path / "out"
    tally = export_training(data, out, data, 0.2, progress=False)
    source, files = ShardSet(data), tree(out)
    assert (tally.done, tally.exit_code) == (15, 0)
    for row, name in enumerate(source.ids):
        assert files.pop(f"images/{name}.jpg") == source.blob("image", row)
        with Image.open(out / "masks" / f"{name}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), source.mask(row))
        files.pop(f"masks/{name}.png")
    train, val = (files.pop(f"splits/{name}.txt").decode().split() for name in ("train", "val"))
    assert len(val) == 3 and sorted(train + val) == sorted(source.ids)
    assert files.pop("classes.txt").decode().split() == NAMES
    assert b"15 images, 3 classes. 12 images" in files.pop("README.md")
    assert list(files) == ["train_example.py"]


def test_a_rerun_skips_and_repairs(data, tmp_path):
    out = tmp_path / "out"
    export_training(data, out, data, progress=False)
    before = tree(out)
    (out / "masks" / "image_3.png").write_bytes(b"cut")
    (out / "images" / "image_4.jpg").rename(out / "images" / "image_4.png")
    (out / "masks" / "image_5.png.tmp.more-host-1-0a1b2c3d").write_bytes(b"left")
    tally = export_training(data, out, data, progress=False)
    assert (tally.done, tally.skipped) == (2, 13) and tree(out) == before
    (out / "masks" / "other.png").write_bytes(b"")
    with pytest.raises(UserError, match="masks/other.png"):
        export_training(data, out, data, progress=False)


def test_png_images_keep_their_ending_and_masks_may_be_fewer(tmp_path):
    _, data = make_sets(tmp_path, count=6)
    images, masks = ShardSet(data), tmp_path / "masks"
    masks.mkdir()
    with ShardWriter(masks / "shard-00000.h5", "masks", CLASSES) as writer:
        for row in (5, 2):
            writer.add(images.ids[row], images.tags[row], images.sizes[row],
                       mask=encode_mask(np.zeros(images.sizes[row], np.uint8)))
    write_manifest(masks, "masks", CLASSES, [writer.entry], {})
    export_training(masks, tmp_path / "out", data, 0.5, progress=False)
    stored = (tmp_path / "out" / "images" / "image-02.png").read_bytes()
    assert stored == images.blob("image", 2)


def test_a_damaged_image_fails_alone_and_lists_wait(tmp_path, run):
    _, data = make_sets(tmp_path, count=4, damage="image-02")
    source, masks, out = ShardSet(data), tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    with ShardWriter(masks / "shard-00000.h5", "masks", CLASSES) as writer:
        for row in source:
            writer.add(source.ids[row], source.tags[row], source.sizes[row],
                       mask=encode_mask(np.zeros(source.sizes[row], np.uint8)))
    write_manifest(masks, "masks", CLASSES, [writer.entry], {})
    ended = run("more", "export", masks, "--format", "training", "--data", data, "--out", out,
                "--val-share", 0.25)
    assert ended.code == 1 and "done 3, skipped 0, failed 1" in ended.err
    assert "image-02: the stored bytes are no image" in ended.err
    assert not list((out / "splits").iterdir()) and len(list((out / "images").iterdir())) == 3


@pytest.mark.parametrize("held", ["held", "free"])
def test_a_training_export_holds_the_lock_of_its_folder(data, tmp_path, monkeypatch, held):
    out, seen = tmp_path / "out", []
    if held == "held":
        with folder_lock(out), pytest.raises(UserError, match="writes here"):
            export_training(data, out, data, progress=False)
        assert list(out.iterdir()) == []
        return
    monkeypatch.setattr(training, "replace_file", lambda path, content: (
        seen.append((out / LOCK).exists()), replace_file(path, content))[1])
    export_training(data, out, data, progress=False)
    assert len(seen) == 30 + 5 and all(seen) and not (out / LOCK).exists()


def test_an_exported_file_is_forced_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}"))), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (
        done.append(("name", str(old))), replace(old, new)))
    assert replace_file(tmp_path / "a.png", b"content")
    assert [what for what, _ in done] == ["sync", "name"] and done[0][1] == done[1][1]
    assert (tmp_path / "a.png").read_bytes() == b"content"
    assert not replace_file(tmp_path / "a.png", b"content") and len(done) == 2


@pytest.mark.parametrize("count", [7, 10, 101])
@pytest.mark.parametrize("share", ["0.1", "0.5", "0.33"])
def test_shares_are_exact_and_those_of_data_tools(count, share):
    ids = [f"id{k}" for k in range(count)]
    train, val = split(ids, Fraction(share), 5)
    parts = assign(ids, parse_parts([f"val={share}", f"train={1 - Fraction(share)}"]), 5)
    assert (train, val) == (parts["train"], parts["val"])
    assert set(split(ids[::-1], Fraction(share), 5)[1]) == set(val)


@pytest.mark.parametrize("share", [0.01, 0.99, 1, -0.1, float("nan")])
def test_impossible_shares_are_refused(data, tmp_path, share):
    with pytest.raises(UserError, match="--val-share"):
        export_training(data, tmp_path / "out", data, share, progress=False)
    assert not (tmp_path / "out").exists()


def test_images_of_others_are_refused(data, tmp_path, run):
    _, other = make_sets(tmp_path / "other", count=2)
    words = ("more", "export", data, "--format", "training", "--out", tmp_path / "out", "--data")
    assert refused(run(*words, other), "classes")
    assert refused(run(*words, small_set(tmp_path / "fewer", shards=2)), "lacks 5 of the 15")


def example(out: Path, stub: str | None, tmp_path: Path, *words: str):
    """Run the script; `stub` is the source of the module that it needs, None takes the real one."""
    script = (out / "train_example.py", "--crop", "32", *words)
    if stub is None:  # a process as users start it
        return subprocess.run([sys.executable, *script], capture_output=True, text=True)
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "segmentation_models_pytorch.py").write_text(stub)
    return processes.run("tests.code", FILE, tmp_path / "stub", *script)


def trained(ended, out: Path) -> bool:
    assert ended.returncode == 0, ended.stderr
    assert "5 images to train on, 2 to validate, 4 classes" in ended.stdout
    assert "epoch 2: loss" in ended.stdout and "mIoU" in ended.stdout
    return (out / "model.pt").is_file()


def test_the_example_trains(data, tmp_path):
    out = tmp_path / "out"
    export_training(data, out, data, progress=False)
    assert trained(example(out, STUB, tmp_path, "--epochs", "2", "--limit", "5"), out)


@pytest.mark.skipif(not importlib.util.find_spec("segmentation_models_pytorch"),
                    reason="segmentation-models-pytorch is not installed")
def test_the_example_trains_a_real_network(data, tmp_path):
    out = tmp_path / "out"
    export_training(data, out, data, progress=False)
    assert trained(example(out, None, tmp_path, "--epochs", "2", "--limit", "5"), out)


def test_the_example_says_what_it_lacks(data, tmp_path):
    out = tmp_path / "out"
    export_training(data, out, data, progress=False)
    ended = example(out, "raise ImportError('No module named smp')", tmp_path)
    assert ended.returncode == 1 and "No module named smp" in ended.stderr
    assert "fix: pip install segmentation-models-pytorch" in ended.stderr
