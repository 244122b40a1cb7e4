"""The process group of a single process: no launcher, no C++ build, no message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from more.device import launched_world, local_device
from tests import processes

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
from more.train.distributed import setup, teardown
import torch
world = setup(1)
assert (world.rank, world.size, world.main) == (0, 1, True), world
assert world.agree("x") == "x" and world.gather(3) == [3]
assert world.mean(torch.ones(2)).tolist() == [1, 1]
teardown()
print("fine")
"""


def run(script: str, **extra: str) -> subprocess.CompletedProcess:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launcher}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          cwd=ROOT, timeout=120, env={**environment, **extra})


def test_alone_without_compiler_or_launcher(tmp_path):
    """An empty PATH has neither ninja nor a compiler: nothing may be built."""
    done = run(SCRIPT, PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="",
               TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("fine") and "built" not in done.stdout + done.stderr
    assert not (tmp_path / "extensions").exists()


def test_slurm_variables_are_understood(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in (("PROCID", "3"), ("STEP_NUM_TASKS", "8"), ("NTASKS", "9")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert launched_world() == (3, 8)


def test_ranks_without_a_meeting_point_are_refused():
    script = ("from more.train.distributed import setup\nfrom more.errors import UserError\n"
              "try: setup()\nexcept UserError as error: print(error)")
    done = processes.run("tests.code", script, SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")
    assert "MASTER_ADDR and MASTER_PORT not set" in done.stdout and "fix:" in done.stdout


def test_a_batch_script_outside_srun_is_one_process(monkeypatch):
    """There SLURM_NTASKS counts tasks that nobody started."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert launched_world() == (0, 1)


def test_each_process_of_a_machine_takes_its_own_device(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert local_device() == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert local_device() == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert local_device() == torch.device("cuda", 2)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # else tensors and process group do not match
    assert local_device() == torch.device("cpu")
