"""Reading, overriding, checking and printing settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from more.cli import app
from more.config.load import changed, config_from_dict, flatten, load_config, to_dict
from more.config.schema import PAPER, Config, fields
from more.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def settings(config) -> dict:
    return {key: value for key, value, _ in flatten(config)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_reads_and_survives_a_round_trip(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config_from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_released_voc_values():
    config = load_config(ROOT / "configs" / "voc12_vit_b.py")
    assert (config.train.iterations, config.train.global_batch, config.data.crop) == (20000, 4, 448)
    assert config.cam.scales == (1.0, 0.5, 0.75, 1.5)
    assert config.loss.temperature == 0.5
    assert (config.optim.lr, config.optim.warmup, config.optim.clip) == (6e-5, 1500, 0.0)
    assert (config.model.token_init, config.model.regularising_std) == ("copied", 1.0)


def test_coco_has_the_published_logs_values():
    config = load_config(ROOT / "configs" / "coco14_vit_b.py")
    assert (config.loss.weights.cre, config.loss.weights.ure) == (0.05, 0.0)
    assert config.loss.mcl_form == "mixed"
    assert config.loss.weights.ptc == 0.3, "what a recipe does not name stays as it is"
    assert config.cam.scales == (1.0, 0.5, 0.75, 1.25, 1.5)


def test_overrides_win_and_keep_their_types(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("train = dict(iterations=7)\n")
    config = load_config(file, ["optim.lr=1e-3", "cam.scales=(1, 0.5)", "train.seed=4",
                                "model.weights=my/file.pth", "model.graph=false"])
    assert config.optim.lr == 1e-3 and config.cam.scales == (1, 0.5)
    assert config.train.iterations == 7 and config.train.seed == 4
    assert config.model.weights == "my/file.pth" and config.model.graph is False


@pytest.mark.parametrize(("text", "hint"), [
    ("optim.lrr=3", "optim.lr"), ("lr=3", "optim.lr"), ("train.iteration=3", "train.iterations"),
    ("optm.lr=3", "optim"), ("iterations=3", "train.iterations")])
def test_an_unknown_key_names_the_nearest(text, hint):
    with pytest.raises(UserError) as caught:
        load_config(RECIPES[0], [text])
    assert text.split("=")[0].split(".")[0] in caught.value.message and hint in caught.value.fix


@pytest.mark.parametrize("text", [
    "train.iterations=1.5", "train.iterations=0", "model.pooling=median", "cam.high=0.1",
    "cam.scales=(0.5,1)", "data.mean=(1,2)", "optim=3", "precision=fp8", "model.graph=1",
    "optim.lr=abc", "optim.lr=-1", "optim.lr=0", "optim.lr=1e999", "optim.betas=(0.9,)",
    "optim.warmup=-5", "data.workers=-2", "train.profile=4:2", "train.profile=x",
        "train.scale_to=-1", "telemetry.pictures=-1", "data.min_area=7", "data.std=(1,0,1)",
    "data.mean=(1,'x',2)", "cam.scales=(1,-1)", "cam.scales=(1,'a')", "cam.scales=1",
    "cam.par_dilations=(1,0.5)", "train.threads=-3", "train.micro_batch=-3",
    "deepspeed.timeout_minutes=0", "model.decoder_width=0", "model.regularising_tokens=-1",
    "inference.seed_scale=0", "inference.threshold=2", "crf.iterations=-1",
    "crf.bilateral_rgb=0", "crf.bilateral_rgb=1e-8", "crf.bilateral_xy=0.09",
    "crf.gaussian_xy=1e-8"])
def test_a_bad_value_is_refused_with_its_key(text):
    with pytest.raises(UserError) as caught:
        load_config(ROOT / "configs" / "voc12_vit_b.py", [text])
    assert text.split("=")[0] in caught.value.message


@pytest.mark.parametrize("value", ["None", "none"])
@pytest.mark.parametrize("key", ["data.cache", "train.compile", "tokens.folder", "deepspeed.json",
                                 "checkpoint.best"])
def test_none_is_not_the_name_of_a_file(key, value):
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{key}={value}"])
    assert key in caught.value.message and f"{key}=''" in caught.value.fix
    load_config(None, [f"{key}=''"])


def test_none_is_taken_where_it_is_a_value():
    config = load_config(None, ["model.weights=None", "data.augment=None",
                                "deepspeed.offload=none"])
    assert (config.model.weights, config.data.augment, config.deepspeed.offload) == ("none",) * 3
    for key in ("name", "model.backbone"):
        with pytest.raises(UserError, match=f"{key} = None"):
            load_config(None, [f"{key}=None"])


def test_an_empty_choice_is_shown():
    with pytest.raises(UserError, match=r"must be one of '' \(off\), cam, lam, decoder"):
        load_config(None, ["checkpoint.best=seg"])


@pytest.mark.parametrize("sigma", ["rgb=1.2", "xy=1"])
def test_the_attention_filter_wants_features_that_16_bits_hold(sigma):
    narrow = f"loss.energy_sigma_{sigma}"
    load_config(None, [narrow])
    load_config(None, ["loss.energy_filter=attention", "loss.energy_sigma_rgb=1.3"])
    with pytest.raises(UserError, match="loss.energy_filter = 'attention': .* 16 bits"):
        load_config(None, ["loss.energy_filter=attention", narrow])


@pytest.mark.parametrize("text", ["optim.lr", "=3", " = 3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(UserError, match="key=value"):
        load_config(RECIPES[0], [text])


def test_overrides_apply_to_the_defaults_without_a_file():
    assert load_config(None, ["crf.iterations=3"]).crf.iterations == 3
    assert load_config(None) == Config()


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.py", "optim = dict(\nlr = = 3)", "line 2"), ("a.py", "_base_ = 'none.py'", "none.py"),
    ("a.py", "optim = dict(lr=1/0)", "division"), ("a.txt", "hello", "a.txt"),
    ("a.py", "optim = 3", "optim must be a section")])
def test_a_broken_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(tmp_path / name)
    assert name in caught.value.message and caught.value.fix


def test_the_paper_variant_sets_its_column_and_yields_to_what_is_given():
    config = config_from_dict({"variant": "paper", "loss": {"cre_reduction": "released"}})
    found = settings(config)
    for key, value in PAPER.items():
        assert found[key] == ("released" if key == "loss.cre_reduction" else value)


def test_every_paper_option_is_a_setting():
    assert set(PAPER) <= set(settings(Config())) == {key for key, _ in fields()}


def test_the_config_command_explains_every_setting():
    result = CliRunner().invoke(app, ["config", str(RECIPES[0]), "--explain"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == len(settings(Config())) and all("#" in line for line in lines)


def test_a_missing_file_names_its_neighbours(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="voc12_vit_c") as caught:
        load_config("configs/voc12_vit_c.py")
    assert "voc12_vit_b" in caught.value.fix


def test_a_section_can_change_after_training_and_no_other():
    config = load_config(None, ["train.seed=7"])
    other = changed(config, ["inference.spread=4", "inference.size=336"], "inference")
    assert (other.inference.spread, other.inference.size, other.train.seed) == (4, 336, 7)
    assert changed(config, [], "inference") is config
    with pytest.raises(UserError, match=r"only inference\.\* can"):
        changed(config, ["train.seed=8"], "inference")
    assert changed(config, ["precision=bf16"], "inference", "precision").precision == "bf16"
    for text in ("train.seed=8", "cam.precision=bf16"):
        with pytest.raises(UserError, match=r"only inference\.\* and precision can"):
            changed(config, [text], "inference", "precision")
    with pytest.raises(UserError, match="spread"):
        changed(config, ["inference.spread=-1"], "inference")
