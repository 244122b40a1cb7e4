"""Bad input ends with exit code 2, the file's name and a remedy, before any work."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from more.errors import UserError, from_system
from tests.command.conftest import refused
from tests.data.sets import flip_a_byte, small_set
from tests.data_tools.layout import voc_folder

TINY = 'model = dict(backbone="custom", vit=dict(patch_size=8), weights="none", num_classes=3)'


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three shards of images with masks and three classes."""
    return small_set(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("command", [
    ("train", "CONFIG", "--train", "NONE"), ("train", "CONFIG", "--train", "SET", "--val", "NONE"),
    ("localize", "--run", "NONE", "--data", "SET", "--out", "OUT"),
    ("localize", "--run", "OUT", "--data", "NONE", "--out", "OUT"),
    ("refine", "NONE", "--data", "SET", "--out", "OUT"),
    ("refine", "SEEDS", "--data", "NONE", "--out", "OUT"),
    ("evaluate", "NONE", "--data", "SET"), ("evaluate", "SEEDS", "--data", "NONE"),
    ("export", "NONE", "--out", "OUT"), ("report", "--run", "NONE"), ("scores", "--run", "NONE"),
    ("config", "NONE.py")], ids=" ".join)
def test_a_missing_folder_is_named(run, tmp_path, images, sets, config, command):
    places = {"CONFIG": config, "SET": images, "SEEDS": sets[0], "OUT": tmp_path / "out",
              "NONE": tmp_path / "nowhere", "NONE.py": tmp_path / "nowhere.py"}
    ended = run("more", *(places.get(word, word) for word in command))
    assert refused(ended, "nowhere") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("tool", ["verify", "inspect"])
def test_the_data_tools_name_a_missing_set(run, tmp_path, tool):
    assert refused(run(tool, tmp_path / "nowhere"), "nowhere")


@pytest.mark.parametrize("command", [
    ("train", "CONFIG", "--train", "SET", "--run", "OUT"),
    ("refine", "SEEDS", "--data", "IMAGES", "--out", "OUT"),
    ("evaluate", "SEEDS", "--data", "IMAGES", "--save", "OUT/scores.json"),
    ("export", "SET", "--out", "OUT")], ids=" ".join)
def test_an_output_that_cannot_be_made_is_named(run, tmp_path, images, sets, config, command):
    (tmp_path / "file").write_text("")
    places = {"CONFIG": config, "SET": images, "SEEDS": sets[0], "IMAGES": sets[1],
              "OUT": tmp_path / "file" / "out",
              "OUT/scores.json": tmp_path / "file" / "out" / "scores.json"}
    ended = run("more", *(places.get(word, word) for word in command))
    assert refused(ended, str(tmp_path / "file" / "out"))


def test_the_converter_names_an_output_that_cannot_be_made(run, tmp_path):
    root = voc_folder(tmp_path / "voc", 3)
    (tmp_path / "file").write_text("")
    ended = run("voc", root, tmp_path / "file" / "set", "--split", "train")
    assert refused(ended, str(tmp_path / "file" / "set"))


def test_scores_are_not_saved_under_a_folders_name(run, tmp_path, sets):
    ended = run("more", "evaluate", sets[0], "--data", sets[1], "--save", tmp_path)
    assert refused(ended, str(tmp_path), "is a folder")


@pytest.mark.parametrize("command", [
    ("train", "CONFIG", "--train", "SET", "--run", "OUT"),
    ("refine", "SEEDS", "--data", "IMAGES", "--out", "OUT"),
    ("evaluate", "SEEDS", "--data", "IMAGES"), ("export", "SET", "--out", "OUT")], ids=" ".join)
def test_a_flipped_byte_is_found_before_any_work(run, tmp_path, images, sets, config, command):
    places = {"CONFIG": config, "SET": flip_a_byte(images, tmp_path / "set"), "SEEDS": sets[0],
              "IMAGES": flip_a_byte(sets[1], tmp_path / "images"), "OUT": tmp_path / "out"}
    ended = run("more", *(places.get(word, word) for word in command))
    assert refused(ended, "shard-00000.h5", "sha256") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [
    ("refine", "SEEDS", "--data", "SET", "--out", "OUT", "--workers", "-1"),
    ("refine", "SEEDS", "--data", "SET", "--out", "OUT", "--ignore-below", "3"),
    ("localize", "--run", "OUT", "--data", "SET", "--out", "OUT", "--batch", "-3"),
    ("report", "--run", "OUT", "--images", "0")], ids=" ".join)
def test_a_number_out_of_range_is_named(run, command):
    ended = run("more", *command)
    assert ended.code == 2 and command[-2] in ended.err


@pytest.mark.parametrize("option", ["--workers", "--shard-size"])
def test_the_converter_refuses_negative_numbers(run, option):
    ended = run("voc", "ROOT", "SET", "--split", "train", option, "-1")
    assert ended.code == 2 and option in ended.err


@pytest.mark.parametrize("option", ["--tags", "--classes"])
def test_a_text_in_another_encoding_is_named(run, tmp_path, option):
    root = voc_folder(tmp_path / "voc", 3)
    (tmp_path / "list").write_bytes("id,tags\nMünchen,cat\n".encode("utf-16"))
    ended = run("voc", root, tmp_path / "set", "--split", "train", option, tmp_path / "list")
    assert refused(ended, str(tmp_path / "list"), "UTF-8")


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_damaged_scores_are_named(run, tmp_path, content):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "lam.json").write_text(content)
    assert refused(run("more", "scores", "--run", tmp_path), "lam.json")


def test_damaged_scores_do_not_hide_the_others(run, tmp_path, sets):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "bad.json").write_text("{")
    (tmp_path / "scores" / "lam.json").write_text(json.dumps(
        {"name": "seeds/lam", "route": "a route", "miou": 0.5, "classes": {}}))
    ended = run("more", "scores", "--run", tmp_path)
    assert ended.code == 0 and "bad.json" in ended.err
    assert "50.00" in ended.out and "a route" in ended.out


def test_a_full_disk_is_the_users_and_a_missing_file_is_not():
    full = from_system(OSError(errno.ENOSPC, "No space left on device", "out/shard-00000.h5"))
    assert isinstance(full, UserError) and "out/shard-00000.h5: No space left" in full.message
    assert "free some space" in full.fix
    assert from_system(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
