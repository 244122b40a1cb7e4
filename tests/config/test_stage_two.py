"""Settings of stage two: the file's `stage_two` over its others, below what is given by hand."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from more.cli import app
from more.config.load import config_from_dict, load_config, to_dict
from more.config.schema import CamConfig
from more.errors import UserError

FILE = """
data = dict(crop=64)
optim = dict(lr=1e-3, warmup=5)
train = dict(iterations=70, global_batch=4)
stage_two = dict(optim=dict(lr=1e-2), train=dict(iterations=20, seed=9),
                 segment=dict(blocks=2, loss="plain"), data=dict(workers=0))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(FILE)
    return path


def test_stage_one_knows_nothing_of_stage_two(file):
    config = load_config(file)
    assert (config.stage, config.optim.lr, config.train.iterations) == (1, 1e-3, 70)
    assert (config.train.seed, config.segment.blocks, config.segment.loss) == (1, 0, "balanced")


def test_stage_two_is_put_over_the_other_settings_section_by_section(file):
    config = load_config(file, stage=2)
    assert (config.stage, config.name) == (2, "a")
    assert (config.optim.lr, config.train.iterations, config.train.seed) == (1e-2, 20, 9)
    assert (config.segment.blocks, config.segment.loss, config.data.workers) == (2, "plain", 0)
    assert (config.optim.warmup, config.train.global_batch, config.data.crop) == (5, 4, 64)


def test_without_a_section_stage_two_has_the_settings_of_stage_one(tmp_path):
    (tmp_path / "a.py").write_text("optim = dict(lr=1e-3)\n")
    one, two = (to_dict(load_config(tmp_path / "a.py", stage=stage)) for stage in (1, 2))
    assert two == {**one, "stage": 2}
    assert load_config(None, stage=2).stage == 2


@pytest.mark.parametrize("stage", [1, 2])
def test_overrides_win_in_both_stages(file, stage):
    config = load_config(file, ["train.iterations=33", "segment.blocks=-1", "optim.eps=1e-6"],
                         stage)
    assert (config.train.iterations, config.segment.blocks, config.optim.eps) == (33, -1, 1e-6)
    assert config.optim.lr == (1e-3, 1e-2)[stage - 1], "what is not overridden stays"


@pytest.mark.parametrize("with_section", [True, False])
def test_an_override_may_mean_stage_two_alone(file, tmp_path, with_section):
    (tmp_path / "b.py").write_text("train = dict(iterations=70)\n")
    path = file if with_section else tmp_path / "b.py"
    given = ["stage_two.train.iterations=8", "stage_two.segment.tags=0.5"]
    one, two = (load_config(path, given, stage) for stage in (1, 2))
    assert (one.train.iterations, one.segment.tags) == (70, 0)
    assert (two.train.iterations, two.segment.tags) == (8, 0.5)
    if with_section:
        assert two.train.seed == 9 and two.segment.blocks == 2


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("text", "near"), [
    ("train=dict(iteration=3)", "train.iterations"), ("segment=dict(block=2)", "segment.blocks"),
    ("segmnt=dict(blocks=2)", "segment"), ("blocks=2", "segment.blocks")])
def test_a_mistake_in_stage_two_is_found_before_stage_one(tmp_path, stage, text, near):
    (tmp_path / "a.py").write_text(f"stage_two = dict({text})\n")
    with pytest.raises(UserError, match="unknown setting") as caught:
        load_config(tmp_path / "a.py", stage=stage)
    assert "a.py in stage two" in caught.value.message and near in caught.value.fix


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("text", [
    "stage_two.train.iteration=3", "stage_two.segment.blocks=-2", "stage_two.segment.loss=best",
    "stage_two.segment.ignore_below=1.5", "stage_two.segment.stride=0",
    "stage_two.tokens.views=0", "stage_two.tokens.gb=-1", "stage_two.train=3", "stage_two=3",
    "segment.blocks=1.5", "segment.tags=-1", "segment.confidence=yes", "segment.decoder=new"])
def test_bad_values_are_refused_in_either_stage(file, stage, text):
    with pytest.raises(UserError) as caught:
        load_config(file, [text], stage)
    key = text.split("=")[0].removeprefix("stage_two.")
    assert key in caught.value.message and caught.value.fix


def test_stage_two_that_is_no_section_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("stage_two = 3\n")
    with pytest.raises(UserError, match="stage_two must be a section, not 3"):
        load_config(tmp_path / "a.py")


def test_both_survive_a_round_trip_and_do_not_share_what_can_change(file):
    for stage in (1, 2):
        config = load_config(file, stage=stage)
        assert config_from_dict(json.loads(json.dumps(to_dict(config)))) == config
    first = load_config(file, ["model.vit.depth=3", "stage_two.model.vit.depth=4"])
    second = load_config(file, ["stage_two.model.vit.depth=4"], stage=2)
    assert (first.model.vit, second.model.vit) == ({"depth": 3}, {"depth": 4})


def test_the_config_command_shows_either(file):
    for stage, lr in ((1, 1e-3), (2, 1e-2)):
        result = CliRunner().invoke(app, ["config", str(file), "--stage", str(stage), "--json"])
        assert result.exit_code == 0 and json.loads(result.stdout)["optim"]["lr"] == lr


@pytest.mark.parametrize(("crop", "shares", "pixels"), [
    (448, (1 / 224, 2 / 224, 24 / 224), (1, 2, 24)),
    (112, (0.018, 0.036, 0.054, 0.107), (1, 2, 3, 6)),
    (448, (0.018, 0.036, 0.054, 0.107), (4, 8, 12, 24)),
    (64, (0.001, 0.02, 0.03, 0.5), (1, 16)),  # at least one pixel; equal ones once
    (64, (1, 2, 4, 8), (1, 2, 4, 8)), (448, (1.0, 2.0), (1, 2))])
def test_neighbours_as_shares_of_half_the_crop_or_in_pixels(crop, shares, pixels):
    found = CamConfig(par_dilations=shares).dilations(crop)
    assert found == pixels and all(type(step) is int for step in found)


def test_the_objective_refines_with_neighbours_in_pixels():
    from more.method.objective import make_objective

    config = load_config(None, ["data.crop=112", "cam.par_dilations=(0.018, 0.107)"])
    assert make_objective(config).par.dilations == (1, 6)
    assert make_objective(load_config(None)).par.dilations == (1, 2, 4, 8, 12, 24)


@pytest.mark.parametrize("value", ["(1, 0.5)", "(0.5, 1)", "(0.1, 2)", "(1.5, 2)", "(0, 1)",
                                   "(-0.5,)", "()"])
def test_mixed_neighbours_are_refused(value):
    with pytest.raises(UserError, match="cam.par_dilations = .*: needs whole pixels, or shares"):
        load_config(None, [f"cam.par_dilations={value}"])


@pytest.mark.parametrize(("given", "levels"), [
    ([], (0.7, 0.25)), (["loss.label_high=0.6"], (0.6, 0.25)),
    (["loss.label_low=0.1"], (0.7, 0.1)),
    (["loss.label_high=0.5", "loss.label_low=0.25"], (0.5, 0.25)),
    (["loss.label_high=1", "loss.label_low=0"], (1, 0))])
def test_labels_have_levels_of_their_own_or_those_of_the_cam(given, levels):
    from more.method.objective import make_objective

    objective = make_objective(load_config(None, given))
    assert objective.label_levels == levels
    assert (objective.cam.high, objective.cam.low) == (0.7, 0.25)


@pytest.mark.parametrize(("given", "key"), [
    (["loss.label_high=1.5"], "loss.label_high"), (["loss.label_low=-0.5"], "loss.label_low"),
    (["loss.label_high=0.2"], "loss.label_low"), (["loss.label_low=0.8"], "loss.label_low"),
    (["loss.label_high=0.3", "loss.label_low=0.4"], "loss.label_low"),
    (["cam.high=0.3", "loss.label_low=0.4"], "loss.label_low")])
def test_levels_that_cross_are_refused(given, key):
    with pytest.raises(UserError) as caught:
        load_config(None, given)
    assert caught.value.message.split(": ")[1].startswith(key)


@pytest.mark.parametrize("key", ["stage=2", "segment.supervision=true masks"])
def test_what_the_command_sets_is_not_for_users(key):
    with pytest.raises(UserError, match="more train --masks MASKS` sets it"):
        load_config(None, [key])


def test_a_section_over_a_value_is_named(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text("optim = 3\nstage_two = dict(optim=dict(lr=1.0))\n")
    with pytest.raises(UserError, match="optim is a section"):
        load_config(file)


def test_a_stride_leaves_a_pixel():
    with pytest.raises(UserError, match="must not exceed data.crop"):
        load_config(None, ["segment.stride=200", "data.crop=64"])
