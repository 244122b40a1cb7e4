"""`more run`: every stage once, in the folders of the separate commands, resumed after a kill."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.pipeline import run_stages
from more.pipeline.recipe_choice import choose_map, choose_recipe
from more.pipeline.stages import Plan, make_stages
from more.run_folder import finished, read_status
from tests.command.conftest import refused
from tests.processes import Forked
from tests.train.conftest import TINY, command, tiny  # noqa: F401 - a fixture

STAGES = ["stage one", "seeds", "masks", "stage two", "seeds of new pictures",
          "masks of new pictures", "score of seeds/cam", "score of seeds/lam",
          "score of masks/lam", "score of two seeds/val", "score of two masks/val", "report"]


class Killed(BaseException):
    """The process ends between two stages."""


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Names of the stages that were started, in processes that are forked."""
    names: list[str] = []

    def begin(stage, ranks):
        assert ranks == 1 and stage.line() == shlex.join(("python", "-m", *stage.words))
        names.append(stage.name)
        done = command(*stage.words[1:], start=stage.words[:1])
        assert done.returncode == 0, done.stderr
        return done.returncode

    monkeypatch.setattr(run_stages, "start_stage", begin)
    return names


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run folder that the tests fill one after another."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def line(tiny, place) -> tuple[object, ...]:  # noqa: F811
    """The command of all tests that share the folder."""
    return ("run", tiny["train"], "--val", tiny["val"], "--config", tiny["config"], "--run", place,
            "--set", "train.iterations=2", "--stage-two-set", "train.iterations=3")


def test_a_kill_between_stages_costs_nothing(run, started, line, place, monkeypatch):
    _die_before(monkeypatch, run, line, "masks")
    assert started == ["stage one", "seeds"] and finished(place)
    started.clear()
    ended = run("more", *line)
    assert ended.code == 0 and started == STAGES[2:], ended
    assert "== stage one: complete" in ended.err and "== seeds: complete" in ended.err
    assert "python -m more refine" in ended.err and "--threshold auto" in ended.err
    assert read_status(place / "two")["iterations"] == 3
    assert ended.err.splitlines()[-1].startswith("next: python -m more predict PICTURES --run")
    assert len(ShardSet(place / "masks" / "lam")) == 24 and (place / "report.html").is_file()


def _die_before(monkeypatch, run, line, name):
    """Run until a stage is to begin; the process dies there."""
    begin = run_stages.start_stage

    def die(stage, ranks):
        if stage.name == name:
            raise Killed
        return begin(stage, ranks)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(run_stages, "start_stage", die)
        run("more", *line)


def test_the_second_call_skips_everything_and_prints_json_alone(run, started, line, place):
    ended = run("more", *line, "--json")
    assert ended.code == 0 and not started, ended
    facts = json.loads(ended.out)
    assert [*facts["stages"]] == STAGES and len(facts["scores"]) == 5
    assert facts["network"] == str(place / "two") and "next:" not in ended.err
    shutil.rmtree(place / "masks" / "lam")  # what is gone is made again, and what came of it
    assert run("more", *line).code == 0 and started == STAGES[2:]


def test_runs_lists_the_run_and_stage_two(run, place):
    ended = run("more", "runs", place.parent, "--json")
    rows = {row["name"]: row for row in json.loads(ended.out)}
    assert set(rows) == {"run", "run/two"}
    assert (rows["run"]["state"], rows["run"]["step"], rows["run"]["iterations"]) == (
        "finished", 2, 2)
    assert rows["run/two"]["stage"] == 2 and rows["run/two"]["bytes"] < rows["run"]["bytes"]
    assert rows["run"]["masks"] == "masks/lam" and 0 < rows["run"]["masks_miou"] < 1
    assert set(rows["run"]["scores"]) == {"cam", "lam", "decoder"}
    shown = run("more", "runs", place.parent)
    assert "finished" in shown.out and "2/2" in shown.out
    assert shown.err.splitlines()[-1].startswith("next: ")


def test_a_folder_of_pictures_is_converted_first(run, started, tiny, tmp_path):  # noqa: F811
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    assert refused(run("more", "run", photos, "--run", out), "tags.csv")
    for path in sorted((tiny["folder"] / "voc" / "JPEGImages").iterdir())[:8]:
        shutil.copy(path, photos)
    names = sorted(path.name for path in photos.iterdir())
    (photos / "tags.csv").write_text("id,tags\n" + "".join(
        f"{name},{'cat' if k % 2 else 'dog'}\n" for k, name in enumerate(names)))
    # Seven classes are written in the recipe, two are in the tags.
    ended = run("more", "run", photos, "--config", tiny["config"], "--run", out, "--set",
                "train.iterations=1", "--set", "head_warmup.updates=0")
    assert ended.code == 0 and started == ["data", *STAGES[:4], "report"], ended
    assert json.loads((out / "two" / "config.json").read_text())["model"]["num_classes"] == 2


def test_a_batch_that_is_too_large_for_stage_two_is_refused_at_once(
        run, started, tiny, tmp_path):  # noqa: F811
    ended = run("more", "run", tiny["train"], "--config", tiny["config"], "--run", tmp_path,
                "--stage-two-set", "train.global_batch=25")
    assert refused(ended, "of stage 2", "--stage-two-set train.global_batch=24") and not started


def test_a_stage_that_fails_is_named(run, monkeypatch, tiny, tmp_path):  # noqa: F811
    monkeypatch.setattr(run_stages, "start_stage", lambda stage, ranks: 2)
    ended = run("more", "run", tiny["train"], "--config", tiny["config"], "--run", tmp_path)
    assert refused(ended, "stage one ended with code 2: python -m more train")


def test_a_signal_stops_the_training_with_a_checkpoint(tiny, tmp_path):  # noqa: F811
    config, out = tmp_path / "long.py", tmp_path / "run"
    config.write_text(TINY.replace("iterations=6", "iterations=5000"))
    process = Forked("more", "run", tiny["train"], "--config", config, "--run", out)
    end = time.monotonic() + 120
    while not (out / "log.jsonl").is_file() and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == run_stages.STOPPED, err
    assert read_status(out)["state"] == "stopped" and "asked to stop" in err
    assert "next: the same command" in err and not (out / "stop").exists()


@pytest.mark.parametrize(("pictures", "gpus", "recipe"), [
    (100_000, 0, "voc12_dinov2_s"), (2_999, 1, "voc12_dinov2_s"), (3_000, 1, "voc12_vit_b"),
    (39_999, 8, "voc12_vit_b"), (40_000, 8, "coco14_vit_b")])
def test_the_recipe_follows_from_pictures_and_gpus(pictures, gpus, recipe):
    assert choose_recipe(pictures, gpus)[0] == recipe
    load_config(recipe)


def test_command_lines_of_ranks_and_of_other_crf_settings(tmp_path):
    plan = Plan(tmp_path, Path("set"), None, "voc12_dinov2_s", ("crf.iterations=3",),
                ("optim.lr=1e-4",), choose_map(4))
    stages = {stage.name: stage for stage in make_stages(
        plan, False, load_config(plan.config, plan.overrides))}
    assert [*stages] == ["stage one", "seeds", "masks", "stage two", "report"]
    assert stages["seeds"].line(2).startswith(
        "torchrun --standalone --nproc_per_node=2 -m more -- localize")
    assert stages["seeds"].line().endswith("--map cam --map fused")
    assert stages["masks"].line(2).endswith("--config voc12_dinov2_s --set crf.iterations=3")
    assert stages["stage two"].line().endswith("--set crf.iterations=3 --set optim.lr=1e-4")
    assert "optim" not in stages["stage one"].line()
