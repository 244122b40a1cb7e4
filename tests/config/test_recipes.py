"""Recipes by path and by name: the user's own `./configs` first, then those of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from more.config.load import load_config
from more.config.recipes import PACKAGED, find_recipe, recipes, summary
from more.errors import UserError

NAMES = {"coco14_vit_b", "shapes_micro", "voc12_dinov2_s", "voc12_vit_b"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder of the user's, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("spelling", ["voc12_vit_b", "voc12_vit_b.py", "configs/voc12_vit_b",
                                      "configs/voc12_vit_b.py", "./configs/voc12_vit_b.py"])
def test_a_recipe_is_found_by_name_from_any_folder(elsewhere, spelling):
    assert find_recipe(spelling) == PACKAGED / "voc12_vit_b.py"
    config = load_config(spelling)
    assert config.name == "voc12_vit_b" and config.train.iterations == 20000  # of its _base_


def test_the_users_own_folder_comes_before_the_package(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "voc12_vit_b.py").write_text("train = dict(iterations=3)\n")
    (elsewhere / "configs" / "mine.py").write_text("train = dict(iterations=4)\n")
    assert load_config("voc12_vit_b").train.iterations == 3
    assert load_config("mine").name == "mine" and set(recipes()) == NAMES | {"mine"}


def test_a_given_path_comes_before_every_name(elsewhere):
    (elsewhere / "voc12_vit_b.py").write_text("train = dict(iterations=5)\n")
    assert load_config("voc12_vit_b.py").train.iterations == 5
    assert load_config("voc12_vit_b").train.iterations == 20000  # no such file: the recipe


@pytest.mark.parametrize("path", ["voc12_vitb", "runs/voc12_vit_b.py", "README.md", "nothing"])
def test_an_unknown_recipe_is_refused_with_those_of_both_folders(elsewhere, path):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "mine.py").touch()
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert path in caught.value.message
    assert all(name in caught.value.fix for name in NAMES | {"mine"})


def test_a_near_name_is_offered(elsewhere):
    with pytest.raises(UserError, match="did you mean voc12_vit_b"):
        find_recipe("voc12_vitb")


def test_config_list_names_every_recipe_with_its_purpose(run_more):
    shown = run_more("config", "--list")
    assert shown.exit_code == 0
    for name, file in recipes().items():
        assert f"{name}  ({file})\n    {summary(file)}\n" in shown.stdout
        assert len(summary(file)) > 20, f"{file} does not begin with a comment on what it is"
    found = json.loads(run_more("config", "--list", "--json").stdout)
    assert {item["name"] for item in found["recipes"]} == NAMES
    assert (Path(found["launch"]) / "train.sh").is_file()


@pytest.mark.parametrize("arguments", [[], ["voc12_vit_b", "--list"]])
def test_config_takes_either_a_recipe_or_list(run_more, arguments):
    refused = run_more("config", *arguments)
    assert isinstance(refused.exception, UserError) and "--list" in refused.exception.fix


@pytest.fixture
def run_more():
    """Calls a command in this process."""
    from typer.testing import CliRunner

    from more.cli import app

    return lambda *arguments: CliRunner().invoke(app, list(arguments))
