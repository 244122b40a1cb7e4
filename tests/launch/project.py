"""A copy of the launch scripts with programs of our own in place of torchrun, srun and scontrol."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.conftest import ROOT, is_of_a_launcher

REQUIREMENTS = ("requirements.txt", "pyproject.toml")


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what launchers and their users set, plus `extra`."""
    kept = {key: value for key, value in os.environ.items()
            if not is_of_a_launcher(key) and not key.startswith(("TORCH", "GLOO_", "NCCL_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
            **extra}


def environment_folder(folder: Path, root: Path) -> Path:
    """A stand-in for `.venv` that launch/setup.sh of `root` takes as complete.

    Its programs are those of the running interpreter.
    """
    (folder / "bin").mkdir(parents=True)
    for name, start in (("python", sys.executable),
                        ("torchrun", f"{sys.executable} -m torch.distributed.run"),
                        ("deepspeed", str(Path(sys.executable).parent / "deepspeed"))):
        program(folder / "bin" / name, f'exec {start} "$@"')
    (folder / ".requirements").write_text(installed_mark(root) + "\n")
    return folder


def installed_mark(root: Path) -> str:
    """What launch/setup.sh writes into an environment once it has what these files ask for."""
    files = (root / name for name in REQUIREMENTS)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def program(path: Path, body: str) -> None:
    """An executable bash script."""
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return as soon as the condition holds; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Project:
    """A project folder whose launchers record how they were called.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "dir"
        shutil.copytree(ROOT / "launch", folder / "launch")
        for name in REQUIREMENTS:
            shutil.copy(ROOT / name, folder)
        for name in ("more", "configs"):
            (folder / name).symlink_to(ROOT / name)
        self.bin = environment_folder(folder / ".venv", folder) / "bin"

    def fake(self, name: str, body: str = "") -> None:
        """A launcher that appends its arguments to NAME.log, then does `body`."""
        log = self.folder / f"{name}.log"
        program(self.bin / name, f'printf "%s\\n" "$*" >> "{log}"\n{body}')

    def torchrun(self, state: str, code: int = 0) -> None:
        """A torchrun that leaves a state behind ("" for none) and ends with a code."""
        write = f"mkdir -p dir; {status(state)}" if state else ""
        self.fake("torchrun", f"{write}\nexit {code}")

    def stoppable_torchrun(self) -> None:
        """A torchrun that runs until it finds the stop file, as the ranks do."""
        self.fake("torchrun", f"""mkdir -p dir; echo > dir/started
            trap 'echo QUIT > dir/terminated; exit 1' QUIT
            for n in $(seq 400); do
                [ ! -e dir/stop ] || [ -e dir/stubborn ] || break
                sleep .05
            done
            rm dir/stop; {status("stopped")}""")

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a fake launcher."""
        log = self.folder / f"{name}.log"
        return log.read_text().splitlines() if log.exists() else []

    def start(self, script: str, *arguments: str, **extra: str) -> subprocess.Popen:
        """Start a script of the project; standard output and error are pipes."""
        return subprocess.Popen(
            ["bash", script, *arguments], cwd=self.folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_signals,
            env=clean_environment(SETTLE="0", PATH=f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
                                  **extra))

    def call(self, script: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
        """Run a script of the project to its end."""
        return ended(self.start(script, *arguments, **extra))

    def signal(self, running: subprocess.Popen, *numbers: signal.Signals) -> None:
        """Send signals, each after the one before has been answered, once the ranks run."""
        wait_for((self.run / "started").exists, "torchrun's start")
        for number in numbers:
            running.send_signal(number)
            time.sleep(0.3)


def status(state: str) -> str:
    """The shell command by which a fake torchrun writes the trainer's status.json."""
    return (f"""echo '{{"state": "{state}", "step": 3, "iterations": 6}}' > dir/status.new; """
            "mv dir/status.new dir/status.json")


def _heed_signals() -> None:
    """What started the tests may ignore signals (nohup does), and bash cannot trap such ones."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def ended(running: subprocess.Popen, seconds: float = 60) -> subprocess.CompletedProcess:
    """The result of a started script; killed with AssertionError if it takes too long."""
    try:
        out, err = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(family(running.pid))
        raise AssertionError(f"still running after {seconds} s: {running.args}") from None
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def family(pid: int) -> list[psutil.Process]:
    """A process with all its descendants; none when it has ended."""
    parent = find(pid)
    with suppress(psutil.NoSuchProcess):
        return [parent, *parent.children(recursive=True)] if parent else []
    return []


def find(pid: int) -> psutil.Process | None:
    """The process of an id; None when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL to all; returns when they have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
