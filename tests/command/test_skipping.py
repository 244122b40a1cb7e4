"""Which stages `more run` skips: those whose command, inputs and predecessors are the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from more.errors import UserError
from more.pipeline import run_stages as module
from more.pipeline.run_stages import SOME_FAILED, STOPPED, read_record, run_stages, start_stage
from more.pipeline.stages import Stage, convert_stage
from more.pipeline.start import _ranks


class Killed(BaseException):
    """The process ends inside a stage."""


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Names of the stages that were started; each makes its result."""
    names: list[str] = []

    def begin(stage: Stage, ranks: int) -> int:
        names.append(stage.name)
        stage.result.touch()
        return 0

    monkeypatch.setattr(module, "start_stage", begin)
    return names


def _stages(folder: Path, first: str = "10") -> list[Stage]:
    return [Stage("one", ("more", "a", first), folder / "one"),
            Stage("two", ("more", "b"), folder / "two"),
            Stage("three", ("more", "c"), folder / "three")]


def _send_when_heeded(number: int) -> None:
    """Send this process a signal as soon as another handler than the present one is set."""
    before = signal.getsignal(number)

    def send() -> None:
        while signal.getsignal(number) == before:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_what_follows_a_changed_stage_is_not_complete(started, tmp_path):
    assert run_stages(tmp_path, _stages(tmp_path), 1) == 0
    assert run_stages(tmp_path, _stages(tmp_path), 1) == 0 and len(started) == 3
    run_stages(tmp_path, _stages(tmp_path, "20"), 1)  # seeds of the longer training are others
    assert started[3:] == ["one", "two", "three"]


def test_other_images_or_settings_make_nothing_complete(started, tmp_path):
    for inputs in ("a", "a", "b"):
        run_stages(tmp_path, _stages(tmp_path), 1, inputs)
    assert started == ["one", "two", "three"] * 2


def test_a_kill_inside_a_stage_leaves_those_after_it_open(started, tmp_path, monkeypatch):
    run_stages(tmp_path, _stages(tmp_path), 1)

    def die(stage: Stage, ranks: int) -> int:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, "start_stage", die)
        run_stages(tmp_path, _stages(tmp_path, "20"), 1)
    assert not read_record(tmp_path)["done"]
    started.clear()
    run_stages(tmp_path, _stages(tmp_path), 1)  # back to the first command line
    assert started == ["one", "two", "three"]


def test_images_that_failed_are_not_forgotten(tmp_path, monkeypatch, capsys):
    seeds = Stage("seeds", ("more", "localize", "--run", "r"), tmp_path / "seeds")
    seeds.result.touch()
    monkeypatch.setattr(module, "start_stage", lambda stage, ranks: SOME_FAILED)
    for _ in range(2):
        assert run_stages(tmp_path, [seeds], 1) == SOME_FAILED
    assert "failed; to try them: python -m more localize --run r" in capsys.readouterr().err
    strict = Stage("report", ("more", "report"), tmp_path / "page")
    with pytest.raises(UserError, match="report ended with code 1: python -m more report"):
        run_stages(tmp_path, [strict], 1)


def test_the_converter_looks_at_its_sources_at_every_call(started, tmp_path):
    stage = convert_stage(tmp_path, tmp_path / "tags.csv", tmp_path / "set")
    for _ in range(2):
        run_stages(tmp_path / "run", [stage], 1)
    assert started == ["data", "data"]


def test_no_stage_begins_after_a_stop_that_came_too_late_for_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_launched", lambda stage, ranks: [
        "timeit", "-n", "1", "-r", "1", "import time; time.sleep(1)"])
    stage = Stage("stage one", ("more", "train"), tmp_path)
    _send_when_heeded(signal.SIGTERM)
    assert start_stage(stage, 1) == STOPPED and not (tmp_path / "stop").exists()
    assert start_stage(stage, 1) == 0


def test_a_stage_that_trains_nothing_is_ended_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "_launched", lambda stage, ranks: [
        "timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"])
    _send_when_heeded(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        start_stage(Stage("seeds", ("more", "localize"), tmp_path), 1)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "seeds was ended; the same command goes on" in capfd.readouterr().err


def test_a_signal_to_a_stage_that_has_just_ended_is_no_error(tmp_path, monkeypatch):
    def gone(group: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(module, "_launched", lambda stage, ranks: [
        "timeit", "-n", "1", "-r", "1", "import time; time.sleep(1)"])
    monkeypatch.setattr(module.os, "killpg", gone)
    _send_when_heeded(signal.SIGTERM)
    with pytest.raises(SystemExit):
        start_stage(Stage("seeds", ("more", "localize"), tmp_path), 1)


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_ranks_are_a_number(monkeypatch, text):
    monkeypatch.setenv("RANKS", text)
    with pytest.raises(UserError, match=f"RANKS={text}"):
        _ranks()
    monkeypatch.setenv("RANKS", "3")
    assert _ranks() == 3
