"""`train.scale_to`: another global batch with everything else in proportion, or a refusal."""

from __future__ import annotations

import pytest

from more.config.load import config_from_dict, load_config, to_dict
from more.config.scale import KEPT, scaled_settings
from more.errors import UserError
from tests.conftest import ROOT

VOC = ROOT / "configs" / "voc12_vit_b.py"


def test_rate_length_warmup_and_starts_are_scaled_linearly():
    config = load_config(VOC, ["train.scale_to=32"])
    assert config.train.global_batch == 32 and config.train.scaled_from == 4
    assert config.optim.lr == pytest.approx(8 * 6e-5)
    assert (config.train.iterations, config.optim.warmup) == (2500, round(1500 / 8))
    assert config.loss.start.seg == 250 and config.loss.start.cls == -1
    assert config.cam.late_after == 1250
    assert (config.eval.every, config.checkpoint.every) == (250, 125)
    said = scaled_settings(config)
    assert said["factor"] == 8 and said["settings"]["train.iterations"] == 2500
    assert "loss.start.cls" not in said["settings"] and said["kept"] == list(KEPT)


def test_stage_two_is_scaled_from_its_own_batch():
    config = load_config(VOC, ["train.scale_to=32"], stage=2)
    assert config.train.scaled_from == 8 and config.train.iterations == 2500


def test_recorded_settings_are_not_scaled_again():
    config = load_config(VOC, ["train.scale_to=32"])
    assert config_from_dict(to_dict(config)) == config


def test_the_recipe_as_written_is_not_touched():
    config = load_config(VOC)
    assert scaled_settings(config) == {} and config.optim.lr == 6e-5
    assert config.precision == "fp32" and config.train.iterations == 20000


@pytest.mark.parametrize("also", ["optim.lr=1e-4", "train.global_batch=8", "loss.start.seg=100",
                                  "train.iterations=100", "stage_two.optim.warmup=3"])
def test_what_may_be_meant_before_or_after_scaling_is_refused(also):
    with pytest.raises(UserError, match="before or after scaling") as caught:
        load_config(VOC, ["train.scale_to=32", also])
    assert also.partition("=")[0].removeprefix("stage_two.") in str(caught.value)


def test_only_scale_to_sets_where_it_came_from():
    with pytest.raises(UserError, match="scaled_from is not for files or --set"):
        load_config(VOC, ["train.scaled_from=4"])
