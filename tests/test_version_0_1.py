"""What version 0.1.0 wrote is still read: shards, run, weights, settings (fixtures/version_0_1).

They were written before the modules were moved, by the commands of a user.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from more.config.load import load_config, to_dict
from more.data.shards.reader import ShardSet
from tests.conftest import ROOT
from tests.train.conftest import command, records

OLD = ROOT / "tests/fixtures/version_0_1"


def flat(tree: dict, path: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        inner = flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
        found |= inner
    return found


@pytest.mark.parametrize("kind", ["train", "val", "seeds", "masks"])
def test_shards_are_read_and_verified(kind):
    assert len(ShardSet(OLD / kind)) == {"train": 8}.get(kind, 2)
    done = command(OLD / kind, start=("data_tools.verify",))
    assert done.returncode == 0, done.stderr


def test_a_file_of_settings_gives_what_the_run_recorded():
    now, then = (flat(tree) for tree in (
        json.loads(json.dumps(to_dict(load_config(OLD / "micro.py")))),
        json.loads((OLD / "run/config.json").read_text())))
    then["precision"] = "auto"  # the run notes what it has come to
    assert {key: now.get(key, "gone") for key in then} == then


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """Weights, moments of the optimiser and random state: the next update is the old code's."""
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    done = command("train", OLD / "micro.py", "--train", OLD / "train", "--run", run,
                   "--set", "train.iterations=5")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "resumed after 4 updates" in said, said
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("weights", ["run", "micro.safetensors"])
def test_seeds_and_masks_of_an_old_network_are_the_same(tmp_path, weights):
    done = command("localize", "--run", OLD / weights, "--data", OLD / "val", "--out",
                   tmp_path / "seeds", "--map", "lam")
    assert done.returncode == 0, done.stderr
    done = command("refine", tmp_path / "seeds", "--data", OLD / "val", "--out",
                   tmp_path / "masks", "--workers", 1)
    assert done.returncode == 0, done.stderr
    new, old = ShardSet(tmp_path / "masks"), ShardSet(OLD / "masks")
    for row in range(2):
        assert np.mean(new.mask(row) == old.mask(row)) > 0.99


@pytest.mark.parametrize("start", ["run", "micro.safetensors"])
def test_training_on_masks_starts_from_an_old_run(tmp_path, start):
    done = command("train", OLD / "micro.py", "--train", OLD / "train", "--masks", OLD / "train",
                   "--init", OLD / start, "--run", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert torch.isfinite(torch.tensor(records(tmp_path / "two")[-1]["terms"]["total"]))


def test_the_fixture_names_no_machine():
    assert not [path for path in Path(OLD).rglob("*") if path.is_file()
                and b"/tmp/" in path.read_bytes()]
