"""Going back to an earlier checkpoint, and what a run that is called again must not do."""

from __future__ import annotations

import json

import pytest

from more import run_folder
from more.config.load import load_config
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.train import checkpoint_files
from more.train.checks import check_continues
from more.train.rewind import leave_future, resolve
from tests.data.sets import small_set
from tests.train.conftest import command, records
from tests.train.test_checkpoint import make


def logged(run, *steps) -> None:
    (run / "log.jsonl").write_text("".join(
        json.dumps({"step": step, "terms": {"total": step}}) + "\n" for step in steps))


def test_a_step_back_sets_the_future_aside(tmp_path):
    for step in (2, 4, 6):
        make(tmp_path, step, complete=step != 4)
    logged(tmp_path, 1, 2, 3, 4, 5, 6)
    checkpoint_files.write_best(tmp_path / "checkpoints", "lam", 50.0, 6)
    for step in (1, 2):  # the second and the third update
        (tmp_path / "nonfinite").mkdir(exist_ok=True)
        (tmp_path / "nonfinite" / f"step-{step:06d}.json").write_text("{}")
    said = leave_future(tmp_path, tmp_path / "checkpoints" / "step-000002")
    place = tmp_path / "earlier-1"
    assert f"step-000004, step-000006; 4 records of log.jsonl) is set aside in {place}" in said
    assert run_folder.find_newest(tmp_path / "checkpoints")[0].name == "step-000002"
    assert [line["step"] for line in records(tmp_path)] == [1, 2]
    assert [line["step"] for line in records(place)] == [3, 4, 5, 6]
    assert run_folder.read_best(tmp_path / "checkpoints") is None
    assert run_folder.read_best(place / "checkpoints")["step"] == 6
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step-000001.json"]
    # And forth again: the run that went back becomes the past.
    assert "another run" in leave_future(tmp_path, place / "checkpoints" / "step-000006")
    assert (tmp_path / "earlier-2" / "checkpoints" / "step-000002").is_dir()


def test_the_newest_checkpoint_leaves_everything_in_place(tmp_path):
    newest = make(tmp_path, 6)
    logged(tmp_path, 5, 6)
    assert leave_future(tmp_path, newest) is None and not (tmp_path / "earlier-1").exists()
    (tmp_path / "log.jsonl").write_text('{"step": 6}\n{"ste')
    assert leave_future(tmp_path, newest) is None
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 6}\n{"ste'


def test_stage_two_is_set_aside_with_the_run_it_began_from(tmp_path):
    first, second = make(tmp_path, 6), make(tmp_path / "two", 3)
    (tmp_path / "two" / "status.json").write_text('{"state": "finished"}')
    assert leave_future(tmp_path, first) is None and second.is_dir(), "it goes on"
    with folder_lock(tmp_path / "two"), pytest.raises(UserError, match="two: process .* writes"):
        resolve(tmp_path, "never")
    assert first.is_dir() and second.is_dir(), "refused, so nothing is moved"
    resolve(tmp_path, "never")
    assert not run_folder.finished(tmp_path / "two")
    assert run_folder.finished(tmp_path / "earlier-1" / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1"]


def test_steps_are_numbers_not_text(tmp_path):
    for step in (999_999, 1_000_000):
        path = make(tmp_path, 2)
        path.rename(path.with_name(run_folder.step_name(step)))
    make(tmp_path, 2)
    checkpoints = tmp_path / "checkpoints"
    assert run_folder.find_newest(checkpoints)[0].name == "step-1000000"
    checkpoint_files.prune(checkpoints, keep=1)
    assert [path.name for path in run_folder.in_order(checkpoints)] == ["step-1000000"]


def test_a_run_that_went_back_goes_on_from_there(tiny, tmp_path):
    run = tmp_path / "run"

    def train(*more: object) -> str:
        done = command("train", tiny["config"], "--train", tiny["train"], "--run", run,
                       "--set", "checkpoint.every=2", "--set", "checkpoint.keep=9", *more)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    train()
    first = records(run)
    back = run / "checkpoints" / "step-000002"
    said = train("--resume", back, "--set", "train.iterations=3")
    assert "the run goes back to 2 updates" in said and "earlier-1" in said
    assert "resumed after 3 updates" in train()  # the same command: not from the old step 6
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in records(run / "earlier-1")] == [3, 4, 5, 6]
    # The same updates again, but for the length of the schedule in the third one.
    assert records(run)[2]["terms"] == first[2]["terms"]


def test_fewer_iterations_than_are_done_are_refused(tiny, tmp_path):
    run = tmp_path / "run"
    start = ("train", tiny["config"], "--train", tiny["train"], "--run", run)
    done = command(*start, "--set", "train.iterations=3")
    assert done.returncode == 0, done.stderr
    classes = run_folder.info(run / "checkpoints" / "step-000003")["classes"]
    assert classes == ShardSet(tiny["train"]).class_names, "what the next test compares with"
    less = command(*start, "--set", "train.iterations=2")
    assert less.returncode == 2
    assert "3 updates are done, more than train.iterations = 2" in " ".join(less.stderr.split())
    assert json.loads((run / "status.json").read_text()) == {
        "state": "finished", "step": 3, "iterations": 3}


def test_other_class_names_are_refused(tmp_path):
    config = load_config(None, ["model.num_classes=3"])
    data = ShardSet(small_set(tmp_path / "set"))  # cat, dog, cow
    source = make(tmp_path / "run", 2)

    def recorded(**values) -> None:
        marker = source / run_folder.MARKER
        marker.write_text(json.dumps({**json.loads(marker.read_text()), **values}))

    check_continues(config, data, source)  # nothing is known of its classes
    (tmp_path / "run" / "run.json").write_text(json.dumps({"classes": ["cat", "dog", "sheep"]}))
    with pytest.raises(UserError, match="class 3 was 'sheep', is 'cow'"):
        check_continues(config, data, source)
    recorded(classes=["dog", "cat", "cow"])
    with pytest.raises(UserError, match="class 1 was 'dog', is 'cat'; class 2 was 'cat'"):
        check_continues(config, data, source)
    recorded(classes=["cat", "dog", "cow"])
    check_continues(config, data, source)
