"""Every check of `more doctor` in health and in each illness that it knows."""

from __future__ import annotations

import errno
import fcntl
import json
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils import cpp_extension

from more.config.load import load_config, to_dict
from more.doctor import diagnosis as doctor
from more.doctor import machine, probes, storage
from more.doctor.probes import Check
from more.train import distributed
from tests.train.conftest import ROOT

Usage = namedtuple("Usage", "total used free")


def states(found) -> dict[str, str]:
    return {check.name: check.state for check in found}


def only(found) -> Check:
    (check,) = found
    assert check.state == "ok" or check.fix, check
    return check


def test_a_quick_look_answers_everything_and_leaves_nothing(tmp_path):
    found = doctor.checks(tmp_path / "new" / "run", quick=True)
    assert {"python", "torch", "bf16", "fp16", "deepspeed ops", "extension locks", "shared memory",
            "open files", "file locks", "hdf5", "replacing", "disk", "clock", "crf"} <= set(
                states(found))
    assert not [check for check in found if "could not be checked" in check.what]
    assert all(check.state in doctor.COLOURS for check in found)
    assert not list(tmp_path.iterdir())


def test_two_processes_add_a_tensor():
    assert probes.pair_error(60, gpus=False) == ""


@pytest.mark.parametrize(("script", "seconds", "message"), [
    ("import os, time; os.environ['RANK'] == '0' and time.sleep(60); raise OSError('no route')",
     30, "rank 1: OSError: no route"),
    ("import time; time.sleep(60)", 0.5, "no answer within 0.5 s"),
], ids=["one fails", "both hang"])
def test_a_pair_that_fails_is_ended_and_says_why(monkeypatch, script, seconds, message):
    monkeypatch.setattr(probes, "PAIR", script)
    assert probes.pair_error(seconds, gpus=False) == message


def test_a_failing_pair_is_a_problem(monkeypatch):
    monkeypatch.setattr(probes, "pair_error", lambda *_: "rank 0: refused")
    assert only(machine.pair()) == Check("two processes", "problem", "rank 0: refused",
                                         only(machine.pair()).fix)


def test_a_check_that_breaks_is_an_answer_too():
    def ask():
        yield Check("first", "ok", "fine")
        raise RuntimeError("driver says no")

    found = doctor.guarded("device", ask)
    assert states(found) == {"first": "ok", "device": "warning"}
    assert "driver says no" in found[1].what


def test_versions_are_held_against_the_bounds(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2,<3", "timm>=1"]\n[project.optional-dependencies]\n'
        """a = ["pydensecrf2==1.1; python_version < '3'"]\n""")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    versions = {"torch": "3.1+cu130", "timm": "1.0.2", "numpy": "2.0", "deepspeed": "0.1"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    found = {check.name: check for check in machine.packages()}
    assert found["torch"].state == "warning" and "3.1+cu130 is outside" in found["torch"].what
    assert found["timm"].state == found["numpy"].state == "ok"
    assert found["torch"].fix == "pip install 'torch<3,>=2'"
    assert found["h5py"].state == "problem" and "pip install" in found["h5py"].fix
    assert "pydensecrf2" not in found  # not for this Python
    (tmp_path / "pyproject.toml").unlink()
    monkeypatch.setattr(metadata, "requires", lambda _: None)
    found = {check.name: check for check in machine.packages()}
    assert found["torch"].what == "3.1+cu130" and found["torch"].state == "ok"
    assert found["numba"].state == "warning"  # there is a slower engine
    assert found["pydensecrf2"].state == "ok" and "comparison" in found["pydensecrf2"].what


def test_bounds_of_an_installed_package_come_from_its_metadata(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)  # no project folder around it
    monkeypatch.setattr(metadata, "requires", lambda _: [
        "torch<3,>=2", "numba<1; extra == 'a'",
        "pydensecrf2==1.1; (python_version < '3') and extra == 'pydensecrf'"])
    monkeypatch.setattr(metadata, "version", lambda _: "3.1")
    found = {check.name: check for check in machine.packages()}
    assert found["torch"].state == found["numba"].state == "warning"
    assert found["timm"].state == "ok" and "pydensecrf2" not in found


def test_locks_of_extension_builds(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    assert only(machine.extension_locks()).state == "ok"  # nobody holds it
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        check = only(machine.extension_locks())
        assert check.state == "warning" and str(lock) in check.fix
    monkeypatch.delattr(cpp_extension, "FileLock")  # as in older versions
    check = only(machine.extension_locks())
    assert check.state == "problem" and f"rm {lock}" in check.fix


def test_deepspeed_that_cannot_be_imported(monkeypatch):
    def broken():
        raise ImportError("libcudart.so")

    monkeypatch.setattr(distributed, "import_deepspeed", broken)
    check = only(machine.deepspeed())
    assert check.state == "problem" and "libcudart.so" in check.what


def test_precisions_of_this_device(monkeypatch):
    assert probes.autocast_error(torch.device("cpu"), torch.bfloat16) == ""
    with pytest.warns(UserWarning, match="not supported"):
        assert "autocast gives" in probes.autocast_error(torch.device("cpu"), torch.float64)
    monkeypatch.setattr(probes, "autocast_error", lambda *_: "no such kernel")
    assert states(machine.precision()) == {"bf16": "warning", "fp16": "ok"}


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "cannot use" in only(machine.device()).what


def test_gpus_are_tried_out(monkeypatch):
    about = SimpleNamespace(name="A GPU", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch, "ones", lambda *_, **__: np.ones(8))
    first, second = machine.device()
    assert "NCCL 2.27.3" in first.what and "A GPU, 80 GiB, compute capability 9.0" in second.what
    assert first.state == second.state == "ok"

    def no_kernel(*_, **__):
        raise RuntimeError("no kernel image is available\nmore lines")

    monkeypatch.setattr(torch, "ones", no_kernel)
    second = list(machine.device())[1]
    assert second.state == "problem" and second.what.endswith("no kernel image is available")


def test_it_answers_without_the_packages_it_asks_about():
    code = """
import sys
from pathlib import Path
for name in ("torch", "deepspeed", "h5py", "numpy", "timm", "cv2", "pydensecrf", "mmengine"):
    sys.modules[name] = None  # its import fails
from more.doctor.diagnosis import checks
print(*(check.name for check in checks(Path("nowhere"), quick=True)), sep=",")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"python", "device", "disk", "clock", "replacing"} <= set(done.stdout.strip().split(","))


def test_space(monkeypatch, tmp_path, tiny):
    for free, state in ((10**10, "ok"), (2 * 10**9, "warning"), (10**9, "problem")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        assert only(storage.disk(tmp_path / "run", None)).state == state
    (tmp_path / "config.json").write_text(json.dumps(to_dict(load_config(tiny["config"]))))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 10**7))
    config = storage.settings(tmp_path)
    assert only(storage.disk(tmp_path, config)).state == "ok"  # a tiny network
    assert only(storage.shared_memory(config)).state == "problem"
    assert "prefetch_mb=256" in only(storage.shared_memory(None)).what


def test_few_open_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert only(storage.open_files()).fix == "ulimit -n 4096"


def test_a_disk_without_locks(monkeypatch, tmp_path):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    found = states(storage.file_locks(tmp_path))
    assert found["file locks"] == "warning"
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # everybody gets it
    assert states(storage.file_locks(tmp_path))["file locks"] == "warning"


def test_a_disk_that_hdf5_or_checkpoints_cannot_use(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(probes, "hdf5_works", refuse)
    assert states(storage.file_locks(tmp_path))["hdf5"] == "problem"
    monkeypatch.setattr(probes, "sync", lambda _: None)
    assert only(storage.replacing(tmp_path)).state == "ok"
    monkeypatch.setattr(probes, "sync", refuse)
    assert only(storage.replacing(tmp_path)).state == "problem"
    monkeypatch.setattr(probes, "replace_works", lambda _: 3.0)
    assert only(storage.replacing(tmp_path)).state == "warning"


def test_clocks(monkeypatch, tmp_path):
    assert only(storage.clock(tmp_path)).state == "ok"
    monkeypatch.setattr(probes, "clock_skew", lambda _: -30.0)
    monkeypatch.setattr(probes, "steps_back", lambda: True)
    assert states(storage.clock(tmp_path)) == {"monotonic clock": "problem", "clock": "warning"}


def test_a_problem_makes_the_exit_code_and_every_trouble_has_its_remedy(capsys):
    found = [Check("a", "ok", "fine [red]"), Check("b", "warning", "odd", "do this")]
    assert doctor.report(found) == 0
    printed = capsys.readouterr().out
    assert "fine [red]" in printed and "b: odd\n  fix: do this" in printed
    assert doctor.report([*found, Check("c", "problem", "broken", "mend it")], as_json=True) == 1
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["a", "b", "c"]
