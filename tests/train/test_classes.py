"""The number of classes comes from the training set, unless the command line says another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from more.config.load import flatten, load_config
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.train.checks import check_same_model, fitted_classes
from tests.command.conftest import run  # noqa: F401 - a fixture
from tests.conftest import ROOT
from tests.data.sets import small_set
from tests.train.conftest import TINY, command

RECIPES = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The tiny configuration with the number of classes of another data set."""
    path = tmp_path_factory.mktemp("twenty") / "tiny.py"
    path.write_text(TINY.replace("num_classes=7", "num_classes=20"))
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", [1, 2])
def test_settings_are_as_if_the_number_had_been_said(tmp_path, recipe, stage):
    images = ShardSet(small_set(tmp_path / "set"))
    found = fitted_classes(load_config(recipe, [], stage), images, [])
    said = load_config(recipe, [f"model.num_classes={images.num_classes}"], stage)
    assert dict((key, value) for key, value, _ in flatten(found) if key != "stage_two") == dict(
        (key, value) for key, value, _ in flatten(said) if key != "stage_two")


def test_a_number_that_fits_or_was_said_stays(tmp_path):
    images = ShardSet(small_set(tmp_path / "set"))
    same = load_config(None, [f"model.num_classes={images.num_classes}"])
    assert fitted_classes(same, images, []) is same
    for said in (["model.num_classes=9"], ["stage_two.model.num_classes=9"]):
        config = load_config(None, said, 2)
        assert fitted_classes(config, images, said) is config


def test_stage_two_keeps_the_classes_of_stage_one(tmp_path):
    images = ShardSet(small_set(tmp_path / "set"))
    with pytest.raises(UserError, match="3 classes, old was trained with 20") as caught:
        fitted_classes(load_config(None, [], 2), images, [], Path("old"))
    assert "--init" in caught.value.fix


def test_a_run_of_another_number_of_classes_wants_its_own_set(monkeypatch):
    from more.config.load import to_dict
    from more.train import checks

    monkeypatch.setattr(checks, "info", lambda _: {"config": to_dict(load_config(None))})
    with pytest.raises(UserError, match="model.num_classes: 20 → 3") as caught:
        check_same_model(load_config(None, ["model.num_classes=3"]), Path("old"))
    assert "the set that it began with" in caught.value.fix


def test_a_dry_run_takes_the_sets_number_and_says_so(run, tiny, config):  # noqa: F811
    line = ("train", config, "--train", tiny["train"], "--val", tiny["val"], "--dry-run", "--json")
    ended = run("more", *line)
    assert ended.code == 0 and json.loads(ended.out)["classes"] == 7
    assert "model.num_classes = 7" in ended.err and "the recipe has 20" in ended.err
    refused = run("more", *line, "--set", "model.num_classes=20")
    assert refused.code == 2 and "has 7 classes, the configuration 20" in refused.err


def test_the_run_records_the_number_and_goes_on_with_it(tiny, config, tmp_path):
    out = tmp_path / "run"
    line = ("train", config, "--train", tiny["train"], "--run", out, "--set", "train.iterations=2")
    done = command(*line)
    assert done.returncode == 0 and done.stderr.count("model.num_classes = 7") == 1, done.stderr
    assert json.loads((out / "config.json").read_text())["model"]["num_classes"] == 7
    again = command(*line[:-1], "train.iterations=3")
    assert again.returncode == 0, again.stderr
    assert "resumed after 2 updates" in again.stdout + again.stderr
