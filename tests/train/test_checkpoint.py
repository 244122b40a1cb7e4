"""Complete or absent: which checkpoint folder is used."""

from __future__ import annotations

import json

import pytest

from more import run_folder
from more.data.shards.format import sha256_file
from more.errors import UserError
from more.train.rewind import resolve


def make(folder, step: int, complete: bool = True):
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(b"x" * step)
    if complete:
        entry = {"bytes": step, "sha256": sha256_file(path / "state.pt")}
        record = {"step": step, "world": 1, "files": {"state.pt": entry}}
        (path / run_folder.MARKER).write_text(json.dumps(record))
    return path


def test_the_newest_complete_one_is_used_and_the_others_are_named(tmp_path):
    good = make(tmp_path, 5)
    make(tmp_path, 8, complete=False)
    torn = make(tmp_path, 9)
    (torn / "state.pt").write_bytes(b"x")
    found, rejected = run_folder.find_newest(tmp_path / "checkpoints")
    assert found == good
    assert "step-000009: state.pt has 1 bytes, not 9" in rejected
    assert any("step-000008" in line and "incomplete" in line for line in rejected)
    assert resolve(tmp_path, "auto")[0] == good
    assert resolve(tmp_path, "never")[0] is None


def test_no_checkpoint_starts_afresh_but_broken_ones_never_do(tmp_path):
    assert resolve(tmp_path, "auto")[0] is None
    make(tmp_path, 3, complete=False)
    with pytest.raises(UserError, match="no complete checkpoint"):
        resolve(tmp_path, "auto")


@pytest.mark.parametrize("damage", ["marker", "file", "json"])
def test_a_path_that_cannot_be_used_is_refused(tmp_path, damage):
    path = make(tmp_path, 3)
    if damage == "marker":
        (path / run_folder.MARKER).unlink()
    elif damage == "file":
        (path / "state.pt").unlink()
    else:
        (path / run_folder.MARKER).write_text("{")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        resolve(tmp_path, str(path))
