"""The live line, `status.json` while updates go on, and what a training says at its end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from more.commands.after_training import Trained, finished_lines, resume_line
from more.commands.options import _say_loading
from more.train import live_line, stop
from more.train.live_line import LiveLine, Status
from tests.conftest import ROOT
from tests.launch.project import wait_for
from tests.processes import FIXED, Forked
from tests.train.conftest import command


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(live_line, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_elsewhere_than_on_a_terminal_the_first_update_has_a_line(clock):
    said = []
    line = LiveLine(3, 20, 4, said.append, every=20)
    clock.seconds += 2.5
    line.update(4, float("nan"), known=False)  # on a GPU its loss comes with the next update
    assert not said
    clock.seconds += 1
    for done in (5, 6):
        line.update(done, 1.25, known=True)
    line.close()
    assert said == ["[4/20] total 1.25 | first update after 2.5 s"]
    LiveLine(0, 20, 4, said.append, every=1).update(1, 1.0, known=True)
    assert len(said) == 1, "the first record is the line"


def test_a_terminal_shows_every_update(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(live_line, "console", Console(file=out, force_terminal=True, width=120))
    line = LiveLine(0, 20, 4, pytest.fail, every=20)
    assert "0/20" in out.getvalue() and "first update" in out.getvalue()
    for done in (1, 2):
        clock.seconds += 2
        line.update(done, 0.5 * done, known=True)
    clock.seconds += 600  # an evaluation
    line.pause()
    clock.seconds += 1
    line.update(3, 0.125, known=True)
    assert line.rate == 4.0
    line.close()
    assert "3/20" in out.getvalue() and "4.00 img/s loss 0.125" in out.getvalue()


def test_status_follows_the_updates_at_most_once_a_second(clock, tmp_path, monkeypatch):
    status, seen = Status(tmp_path, 100), []
    for done in range(1, 41):
        status.update(done, 0)
        seen.append(json.loads((tmp_path / "status.json").read_text())["step"])
        clock.seconds += 0.125
    assert seen == [1 + 8 * (done // 8) for done in range(40)]
    real = live_line.write_status

    def slow(*arguments):
        clock.seconds += 0.5
        real(*arguments)

    monkeypatch.setattr(live_line, "write_status", slow)
    status.update(41, 30)
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "running", "step": 41, "saved": 30, "iterations": 100}
    clock.seconds += 24.5
    status.update(42, 30)
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 41, "at most 2 % of time"
    monkeypatch.setattr(live_line, "write_status", lambda *_: (_ for _ in ()).throw(OSError(28)))
    clock.seconds += 100
    status.update(43, 30)  # the next checkpoint says it


def test_status_says_how_far_a_run_is_before_its_first_checkpoint(tiny, tmp_path):
    run = tmp_path / "run"
    process = Forked("tests.faults.wounds", "slow:0.4", "train", tiny["config"], "--train",
                     tiny["train"], "--run", run, "--set", "train.log_every=20", "--set",
                     "checkpoint.every=20", "--set", "train.iterations=40")
    file = run / "status.json"
    try:
        wait_for(lambda: file.exists() and json.loads(file.read_text())["step"] > 2, "updates", 60)
        status = json.loads(file.read_text())
        assert status["state"] == "running" and status["saved"] == 0
    finally:
        process.kill()
    assert "[1/40] total" in (run / "train.log").read_text()


def test_a_start_that_is_stopped_early_counts_what_is_saved(tmp_path, monkeypatch, capsys):
    stop.write_status(tmp_path, "running", 17, 40, saved=10)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    stop.end_early(tmp_path, 40, "it goes on with:\nCOMMAND")
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "stopped", "step": 10, "iterations": 40}
    assert capsys.readouterr().err.endswith("it goes on with:\nCOMMAND\n")


def test_the_end_of_a_training_is_the_checkpoint_and_the_next_commands(tiny, tmp_path):
    run = tmp_path / "a run"
    done = command("train", tiny["config"], "--train", tiny["train"], "--run", run, "--set",
                   "train.iterations=2")
    assert done.returncode == 0, done.stderr
    checkpoint, following, *commands = done.stderr.splitlines()[-5:]
    assert checkpoint == f"finished; the checkpoint is {run / 'checkpoints' / 'step-000002'}"
    assert following == "next:" and (run / "checkpoints" / "step-000002").is_dir()
    assert commands == [
        f"python -m more localize --run '{run}' --data {tiny['train']} --out '{run}/seeds/lam'",
        f"python -m more refine '{run}/seeds/lam' --data {tiny['train']} --out '{run}/masks/lam' "
        "--threshold auto",
        f"python -m more train {tiny['config']} --train {tiny['train']} --masks '{run}/masks/lam' "
        f"--init '{run}'"]


def test_after_stage_two_come_pictures_and_the_report(tmp_path, monkeypatch):
    best = {"checkpoint": "step-000003", "metric": "decoder", "score": 61.25, "step": 3}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps(best))
    lines = finished_lines(Trained(Path("c.py"), Path("t"), tmp_path, 6, None, Path("m")))
    assert "step-000003 (--checkpoint best)" in lines[1] and "decoder (61.2)" in lines[1]
    assert lines[-2:] == [f"python -m more predict PICTURES --run {tmp_path} --out new_masks",
                          f"python -m more report --run {tmp_path}"]
    monkeypatch.setenv("MORE_NEXT", "off")  # as `more run` starts it
    assert finished_lines(Trained(Path("c.py"), Path("t"), tmp_path, 6, None, Path("m"))) == \
        lines[:2]


def test_a_stopped_training_says_the_command_that_resumes(monkeypatch, tiny, tmp_path):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    words = ["--local_rank=0", "train", "a b.py", "--resume", "never", "--train", "t"]
    assert resume_line(words, 1) == "it goes on with:\npython -m more train 'a b.py' --train t"
    assert "launcher" in resume_line(["train", "--resume=never"], 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resume_line(["train", "x"], 4).endswith(
        "\ntorchrun --standalone --nproc_per_node=4 -m more -- train x")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    run = tmp_path / "run"
    done = command("train", tiny["config"], "--train", tiny["train"], "--run", run, "--resume",
                   "never", start=("tests.faults.wounds", "read_late:0,1"))
    assert done.returncode == stop.STOPPED, done.stderr
    assert done.stderr.endswith(f"it goes on with:\npython -m more train {tiny['config']} --train "
                                f"{tiny['train']} --run {run}\n")


def test_long_imports_are_announced_once_on_stderr(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "argv", ["more", "localize"])
    _say_loading("localize")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "loading PyTorch …\n")
    _say_loading("config")
    monkeypatch.setattr(sys, "argv", ["more", "localize", "--help"])
    _say_loading("localize")
    monkeypatch.setattr(sys, "argv", ["more", "localize"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    _say_loading("localize")
    assert capsys.readouterr() == ("", "")


def test_the_first_line_of_a_training_comes_before_its_imports(tmp_path):
    done = subprocess.run([sys.executable, "-m", "more", "train", tmp_path / "none.py", "--train",
                           tmp_path], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, **FIXED}, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[0] == "loading PyTorch and DeepSpeed …"
    assert "no such configuration file" in done.stderr
