"""Weights out of a run: by name, the best, and as one file that inference takes instead of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.inference.trained import export_weights, find_checkpoint, load_run
from more.train import checkpoint_files
from tests.data.sets import small_set
from tests.inference.test_localize import make_run
from tests.train.conftest import command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run"))
    (run / "run.json").write_text(json.dumps({"classes": ["cat", "dog", "cow"]}))
    return run


def test_the_file_stands_for_the_run(run, tmp_path):
    file = export_weights(run, tmp_path / "out" / "w.safetensors")
    (config, network, path), (other_config, other, other_path) = load_run(file), load_run(run)
    assert config == other_config and path == file and other_path.name == "step-000005"
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    data = small_set(tmp_path / "set")
    for source, out in ((run, "a"), (file, "b")):
        done = command("localize", "--run", source, "--data", data, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    first, second = ShardSet(tmp_path / "a"), ShardSet(tmp_path / "b")
    assert [first.blob("seed", row) for row in first] == [second.blob("seed", row) for row in first]


def test_inference_does_not_import_deepspeed():
    code = "import sys, more.inference.localize; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_best_by_name(run):
    with pytest.raises(UserError, match="no best checkpoint"):
        find_checkpoint(run, "best")
    checkpoint_files.write_best(run / "checkpoints", "lam", 41.5, 5)
    assert find_checkpoint(run, "best").name == "step-000005"


def test_refusals(run, tmp_path):
    with pytest.raises(UserError, match="not a .safetensors file"):
        export_weights(run, tmp_path / "w.pth")
    with pytest.raises(UserError, match="was not made by"):
        load_run(run / "checkpoints/step-000005/model.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        load_run(tmp_path / "x.safetensors")
