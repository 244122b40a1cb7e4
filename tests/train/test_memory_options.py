"""`model.recompute_cheap` in training: no loss changes, whatever DeepSpeed does to the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from more.config.load import load_config, to_dict
from more.errors import UserError
from more.train import checks
from tests.train.conftest import records
from tests.train.jobs import run_jobs


def jobs_of(cases):
    """Two updates of every case ("zero stage-precision") with and without."""
    return {f"{case}-{keep}": [
        "train.iterations=2", f"deepspeed.zero_stage={case[0]}", f"precision={case[2:]}",
        f"model.recompute_cheap={keep}",
        *(["deepspeed.json={folder}/cut-all.json"] if case[0] == "3" else [])]
        for case in cases for keep in (True, False)}


@pytest.mark.parametrize(("ranks", "cases"), [
    (1, ["3-bf16"]),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (1, ["0-fp32", "1-bf16", "2-fp32", "3-fp32"]), (2, ["1-fp32", "3-fp32", "3-bf16"])))])
def test_no_loss_changes_by_a_bit(tiny, tmp_path, ranks, cases):
    run_jobs(tiny, tmp_path / "runs", ranks, jobs_of(cases))
    for case in cases:
        on, off = (records(tmp_path / "runs" / f"{case}-{keep}") for keep in (True, False))
        assert [line["terms"] for line in on] == [line["terms"] for line in off]
        assert len(on) == 2


def test_checkpoints_from_before_the_setting_go_on(tiny, monkeypatch):
    config = load_config(tiny["config"], ["model.recompute_cheap=False"])
    old = to_dict(config)
    del old["model"]["recompute_cheap"]
    monkeypatch.setattr(checks, "info", lambda source: {"config": old})
    old["model"]["gradient_checkpointing"] = True  # the cure for too little memory
    checks.check_same_model(config, Path("old"))
    old["model"]["graph"] = False
    with pytest.raises(UserError, match="model.graph"):
        checks.check_same_model(config, Path("old"))
