"""How commands end: one `next:` line that works, or JSON alone on stdout."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest

from more.commands.next_lines import after_evaluate, masks_place, run_of
from more.data.shards.lock import LOCK, STALE, folder_lock, is_held
from more.evaluation.run_list import list_runs
from tests.evaluation.conftest import image_payload, make_rows, mask_payload, write_set

MADE = {"map": "lam", "tags": "true", "stage": "refine"}


@pytest.fixture(scope="module")
def scorable(tmp_path_factory) -> tuple[Path, Path]:
    """Masks, and their images with truth."""
    folder, rows = tmp_path_factory.mktemp("scorable"), make_rows(6)
    return (write_set(folder / "masks", "masks", rows, mask_payload, MADE),
            write_set(folder / "set", "images", rows, image_payload))


def next_of(ended) -> list[str]:
    """Words of the next line, which is the last one on stderr, without `python -m more`."""
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("next: python -m more "), ended.err
    return shlex.split(last.removeprefix("next: python -m more "))


def test_the_next_lines_lead_from_seeds_to_files(run, sets, tmp_path, monkeypatch):
    """Each command is the one that the command before it has named."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    (place / "seeds").mkdir(parents=True)
    (place / "run.json").write_text('{"train": "the set"}')
    (place / "seeds" / "lam").symlink_to(sets[0])
    first = run("more", "refine", place / "seeds" / "lam", "--data", sets[1], "--out",
                place / "masks" / "lam")
    words = next_of(first)  # the pictures have no truth
    assert words == ["export", str(place / "masks" / "lam"), "--format", "png", "--out",
                     "masks_png"]
    assert run("more", *words).code == 0 and (tmp_path / "masks_png").is_dir()
    rle = run("more", "export", place / "masks" / "lam", "--format", "rle", "--out", "m.json")
    assert rle.err.strip().endswith("python -m data_tools.coco m.json IMAGES SET")


def test_scores_lead_to_the_report_of_their_run(run, scorable, tmp_path):
    (masks, data), place = scorable, tmp_path / "run"
    place.mkdir()
    (place / "run.json").write_text("{}")
    (place / "masks").mkdir()
    (place / "masks" / "lam").symlink_to(masks)
    unsaved = next_of(run("more", "evaluate", place / "masks" / "lam", "--data", data))
    assert unsaved[-1] == str(place / "scores" / "masks_lam.json")
    saved = run("more", *unsaved)
    assert next_of(saved) == ["report", "--run", str(place)]
    assert next_of(run("more", "scores", "--run", place)) == ["report", "--run", str(place)]
    assert after_evaluate(Path("a/b"), data, tmp_path / "x.json").endswith(
        f"--against {tmp_path / 'x.json'}")


@pytest.mark.parametrize(("seeds", "masks"), [
    ("run/seeds/lam", "run/masks/lam"), ("run/seeds", "run/masks"), ("lam", "lam_masks"),
    ("seeds/run/seeds/val", "seeds/run/masks/val")])
def test_masks_go_beside_their_seeds(seeds, masks):
    assert masks_place(Path(seeds)) == Path(masks) and run_of(Path(seeds)) is None


@pytest.mark.parametrize("line", [
    ("config", "shapes_micro"), ("config", "--list"), ("runs", "FOLDER"),
    ("refine", "SEEDS", "--data", "DATA", "--out", "OUT"),
    ("export", "MASKS", "--out", "OUT"), ("evaluate", "MASKS", "--data", "SET"),
    ("scores", "--run", "SCORED"), ("results", "full=SCORED"), ("report", "--run", "SCORED")],
    ids=" ".join)
def test_json_stands_alone_on_stdout(run, sets, scorable, tmp_path, line):
    (masks, images), scored = scorable, tmp_path / "run"
    (scored / "scores").mkdir(parents=True)
    (scored / "run.json").write_text("{}")
    save = scored / "scores" / "masks_lam.json"
    assert run("more", "evaluate", masks, "--data", images, "--save", save, "--json").code == 0
    places = {"SEEDS": sets[0], "DATA": sets[1], "SET": images, "MASKS": masks,
              "OUT": tmp_path / "out", "FOLDER": tmp_path, "SCORED": scored,
              "full=SCORED": f"full={scored}"}
    ended = run("more", *(places.get(word, word) for word in line), "--json")
    assert ended.code == 0, ended
    assert json.loads(ended.out) and "next:" not in ended.err


def test_counts_as_json_name_every_failure(run, sets, tmp_path):
    ended = run("more", "refine", sets[0], "--data", sets[1], "--out", tmp_path / "out", "--json")
    counts = json.loads(ended.out)
    assert (counts["done"], counts["skipped"], counts["failed"]) == (3, 0, 0)
    assert counts["failures"] == [] and counts["masks"] == str(tmp_path / "out")


def test_a_command_among_many_names_no_next_one(run, monkeypatch):
    monkeypatch.setenv("MORE_NEXT", "off")
    assert "next:" not in run("more", "config", "shapes_micro").err


def test_states_come_from_the_record_and_the_lock(tmp_path):
    for name, state in (("a", "running"), ("b", "running"), ("c", "stopped"), ("d", "failed")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(
            json.dumps({"state": state, "step": 3, "iterations": 9}))
    (tmp_path / "a" / "checkpoints" / "step-000003").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "step-000003" / "run.json").write_text("{}")
    (tmp_path / "b" / LOCK).write_text(json.dumps({"pid": 0x3FFFFFFF,
                                                   "host": socket.gethostname()}))
    with folder_lock(tmp_path / "a"):
        states = {row["name"]: row["state"] for row in list_runs(tmp_path)}
    assert states == {"a": "running", "b": "failed", "c": "stopped", "d": "failed"}
    assert list_runs(tmp_path / "a")[0]["state"] == "failed"


def test_scores_that_are_no_numbers_are_left_out(run, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text('{"step": 2, "eval": {"cam": NaN, "lam": 31.5}}\n')
    ended = run("more", "runs", tmp_path, "--json")
    assert ended.code == 0 and json.loads(ended.out)[0]["scores"] == {"lam": 31.5}, ended
    assert "lam 31.5 (at" in " ".join(run("more", "runs", tmp_path).out.split())


def test_a_lock_of_another_host_counts_while_it_is_renewed(tmp_path):
    assert not is_held(tmp_path)
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert is_held(tmp_path)
    old = lock.stat().st_mtime - STALE - 5
    os.utime(lock, (old, old))
    assert not is_held(tmp_path)
