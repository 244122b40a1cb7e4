"""Processes of `python -m MODULE …` for tests: forked from a preloaded one, or new interpreters.

The server of `tests.forkserver` starts with the first request of a pytest process and ends with it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.conftest import ROOT

# Fixed when libraries load: a forked process has those of the server.
FIXED = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
         "OMP_WAIT_POLICY": "PASSIVE"}


class Forked:
    """A process that the server has forked, with the part of `subprocess.Popen` that tests use.

    Args:
        module: what `python -m` would run.
        arguments: its command line.
        extra: variables besides those of this process.
        session: whether it begins a session, and so a process group, of its own.
        cwd: its directory; the project folder unless another is given.
    """

    def __init__(self, module: str, *arguments: object, session: bool = False,
                 cwd: Path = ROOT, **extra: str):
        self.args = [sys.executable, "-m", module, *map(str, arguments)]
        self.returncode: int | None = None
        self.stdout, self.stderr = _file(), _file()
        request = {"module": module, "arguments": self.args[3:], "cwd": str(cwd),
                   "environment": {**os.environ, **FIXED, **extra}, "session": session}
        self._answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(_server(), [json.dumps(request).encode()],
                            [self.stdout.fileno(), self.stderr.fileno(), theirs.fileno()])
        self.pid = self._receive(240)  # the first one waits for the imports

    def _receive(self, timeout: float | None) -> int:
        self._answer.settimeout(timeout)
        message = self._answer.recv(100)
        if not message:
            raise RuntimeError("the server of forked processes has died")
        return int(message)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal; `subprocess.TimeoutExpired` if it still runs."""
        if self.returncode is None:
            try:
                self.returncode = self._receive(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._answer.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what was printed on stdout and stderr."""
        self.wait(timeout)
        texts = []
        for file in (self.stdout, self.stderr):
            file.seek(0)
            texts.append(file.read())
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # since then, and its code is on the way
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _file() -> IO[str]:
    """For output: a file never fills up as a pipe does."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:  # in a session of its own, for Ctrl-C is for the tests
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())], cwd=ROOT,
            env={**os.environ, **FIXED}, pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL)
    atexit.register(lambda: (ours.close(), server.wait(10)))
    return ours


def free_port() -> str:
    """A port of this host that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(module: str, *arguments: object, timeout: float = 280, cwd: Path = ROOT,
        **extra: str) -> subprocess.CompletedProcess:
    """Run `python -m MODULE ARGUMENTS` to its end: exit code and what it printed."""
    process = Forked(module, *arguments, cwd=cwd, **extra)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_ranks(count: int, module: str, *arguments: object,
              timeout: float = 280) -> subprocess.CompletedProcess:
    """What torchrun does, for tests that only need its ranks: where one fails, the others end.

    The exit code is 1 if that of any rank was not 0; the output is theirs, one after another.
    """
    port = free_port()
    group = [Forked(module, *arguments, RANK=str(rank), LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port) for rank in range(count)]
    try:
        end = time.monotonic() + timeout
        while None in (codes := [process.poll() for process in group]) and not any(codes):
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(group[0].args, timeout)
            time.sleep(0.02)
        for process in group:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 20
        while None in [process.poll() for process in group] and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        for process in group:
            process.kill()
    out, err = zip(*(process.communicate(10) for process in group), strict=True)
    failed = any(process.returncode for process in group)
    return subprocess.CompletedProcess(group[0].args, int(failed), "".join(out), "".join(err))
