"""Machines for tests: network namespaces joined by a cable, or this host where that is forbidden.

A machine has an address of its own and processes of its own; `lose` kills all of them at once.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.launch.project import (
    clean_environment,
    environment_folder,
    family,
    find,
    kill,
)


@dataclass
class Machine:
    """One machine.

    Args:
        address: where the others reach it.
        namespace: its network namespace; "" = this host.
        programs: stand-in for `.venv`, see `environment_folder`.
        logs: beginning of the names of files with the output of its commands.
    """

    address: str
    namespace: str
    programs: Path
    logs: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: object, **extra: str) -> subprocess.Popen:
        """Start a command of the project on this machine; its output goes to `output`."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        variables = {"MORE_VENV": os.path.relpath(self.programs, ROOT), "RANKS": "1",
                     "PATH": f"{self.programs}/bin:{os.environ['PATH']}", **extra}
        with open(self._log(len(self.started)), "w") as log:
            running = subprocess.Popen([*inside, *map(str, command)], cwd=ROOT, stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True,
                                       env=clean_environment(**variables))
        self.started.append(running)
        return running

    def output(self, which: int = -1) -> str:
        """What a command, by default the last one, has printed so far."""
        return self._log(which % len(self.started)).read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """All processes of this machine that were started here."""
        if self.namespace:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace], text=True,
                                    capture_output=True).stdout.split()
            return [process for pid in listed if (process := find(int(pid)))]
        return [process for running in self.started for process in family(running.pid)]

    def lose(self) -> None:
        """SIGKILL to every process of the machine."""
        kill(self.processes())
        for running in self.started:
            running.wait(10)

    def _log(self, number: int) -> Path:
        return self.logs.with_name(f"{self.logs.name}-{number}.log")


@contextmanager
def two_machines(folder: Path) -> Iterator[list[Machine]]:
    """Machines that reach each other; afterwards their processes and networks are gone.

    Args:
        folder: an empty folder for their programs and logs.
    """
    programs = environment_folder(folder / "programs", ROOT)
    with _network() as ends:
        made = [Machine(address, name, programs, folder / f"output-{number}")
                for number, (address, name) in enumerate(ends)]
        try:
            yield made
        finally:
            for machine in made:
                machine.lose()


def has_namespaces() -> bool:
    """Whether this process may make network namespaces."""
    name = f"more-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        _ip("netns", "del", name)
    return made


def steps(run: Path) -> list[int]:
    """The steps that a run, perhaps still writing, has recorded."""
    log = run / "log.jsonl"
    complete = log.read_text().rpartition("\n")[0] if log.exists() else ""
    lines = [json.loads(line) for line in complete.splitlines()]
    return [line["step"] for line in lines if "terms" in line]


@contextmanager
def _network() -> Iterator[list[tuple[str, str]]]:
    """(address, namespace) of the two ends of a cable."""
    if not has_namespaces():
        yield [("127.0.0.1", "")] * 2
        return
    # Names of at most 15 characters and a subnet of this process's own: tests may run side by side.
    tag, subnet = os.getpid() % 100_000, f"10.77.{os.getpid() % 250 + 1}"
    ends = [(f"{subnet}.{number}", f"more-{tag}-{number}") for number in (1, 2)]
    cables = [f"mc{tag}-1", f"mc{tag}-2"]
    try:
        for _, name in ends:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", cables[0], "netns", ends[0][1], "type", "veth",
            "peer", "name", cables[1], "netns", ends[1][1])
        for cable, (address, name) in zip(cables, ends, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
        yield ends
    finally:
        for _, name in ends:
            _ip("netns", "del", name, check=False)  # takes its end of the cable with it


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
