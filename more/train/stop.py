"""Stopping on request, and what a run says of itself in `status.json`.

SIGTERM, SIGUSR1, SIGHUP or Ctrl-C to a training process, or a file `stop` in the run folder, ends
the run with a checkpoint as soon as no work is lost by it; the same command continues it.

It imports no torch: signals have to be heeded before that has loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from more.data.shards.format import make_folder, to_json, write_atomic
from more.run_folder import read_status

if TYPE_CHECKING:
    from more.train.distributed import World

STOPPED = 75
"""Exit code of a run that stopped on request (EX_TEMPFAIL: try again later)."""

LOOK_EVERY = 1.0
"""Seconds between two looks for the file: it lies on a disk that many ranks and runs may share."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A run ends on request before its first update; no `except Exception` may keep it."""


class StopRequest:
    """Whether somebody asked this process to stop; use as a context manager around the run.

    It may be entered again inside: signals count until the last exit, and each takes the file away.

    Attributes:
        at_once: a signal raises `Stopped` where it arrives: nothing would be lost, and no other
            rank would wait in vain.
    """

    def __init__(self, at_once: bool = False):
        self.at_once, self.signalled = at_once, False
        self.run: Path | None = None
        self.world: World | None = None
        self._entered, self._since, self._process = 0, 0.0, os.getpid()
        self._looked, self._there = -LOOK_EVERY, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        """From now on signals are heeded, in the main thread."""
        self._entered += 1
        if self._entered == 1 and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                ignored = signal.getsignal(number) == signal.SIG_IGN
                if ignored and number in (signal.SIGINT, signal.SIGHUP):
                    continue  # as nohup or a shell's & wants it
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Take the file `stop` away; after the last exit signals do again what they did before."""
        self._entered -= 1
        if self.run is not None and _is_main():
            (self.run / "stop").unlink(missing_ok=True)
        self._looked, self._there = -LOOK_EVERY, False
        if not self._entered:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def join(self, run: Path, world: World) -> None:
        """From now on the file counts, too, and other ranks may be asked.

        Args:
            run: run folder.
            world: this rank among its peers.
        """
        self.run, self.world = run, world
        self._looked, self._there = -LOOK_EVERY, False
        self.at_once = self.at_once and world.size == 1

    def asked(self) -> bool:
        """Whether this rank knows of a request (rank 0 looks for the file); see `agreed`."""
        return self.signalled or (self._here.main and self._file())

    def seen(self) -> bool:
        """As `asked`, where the ranks do not meet: each looks for the file, and makes it."""
        if self.run is None:
            return self.signalled
        if self.signalled and self._here.size > 1:
            (self.run / "stop").touch()
        return self.signalled or self._file()

    def agreed(self) -> bool:
        """Whether any rank knows of a request; all ranks call it."""
        if self._here.size == 1:
            return self.asked()
        import torch

        return self._here.sum(torch.tensor(float(self.asked()), device=self._here.device)) > 0

    def check(self) -> None:
        """End the run before its first update if that is asked for; all ranks call it.

        Raises:
            Stopped: it is.
        """
        if self.world is not None and self.agreed():
            raise Stopped

    def _file(self) -> bool:
        """Whether the file was there when last looked for, at most `LOOK_EVERY` seconds ago."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked, self._there = now, (self.run / "stop").exists()
        return self._there

    @property
    def _here(self) -> World:
        """The ranks of the run."""
        assert self.world is not None, "join a run first"
        return self.world

    def _note(self, number: int, frame: object) -> None:
        """A signal has arrived."""
        if os.getpid() != self._process:  # a process forked from this one: as it came
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again, self.signalled = self.signalled, True
        if self.at_once:
            self.at_once = False
            raise Stopped
        if not again:
            self._since = time.monotonic()
            if _is_main():
                os.write(2, f"asked to stop ({signal.Signals(number).name}): it ends as soon as "
                            "all is saved; Ctrl-C once more ends it at once\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt


def exit_code() -> int:
    """The code to end a stopped run with.

    Under torchrun 0, since it restarts the group when a process fails; launch/train.sh then reads
    `status.json` and ends with `STOPPED` itself.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def end_early(run: Path | None, iterations: int, how: str = "") -> NoReturn:
    """End this process, a rank of a run that was asked to stop before its first update.

    Args:
        run: run folder, perhaps with the status of an earlier start; None: not known yet.
        iterations: updates of the whole run; 0: not known yet.
        how: it goes on, said at the end.
    """
    if _is_main():
        if run is not None and iterations:
            make_folder(run)
            before = read_status(run)  # after a kill some updates of it may not be saved
            write_status(run, "stopped", before.get("saved", before.get("step", 0)), iterations)
        print("stopped on request before the first update of this start, so there is nothing to "
              "save; the same command goes on from here", file=sys.stderr)
        print(how, end="\n" if how else "", file=sys.stderr)
    for process in multiprocessing.active_children():  # loaders: they would notice in seconds
        process.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code())  # what was interrupted, an import for example, cannot be taken apart


def write_status(run: Path, state: str, step: int, iterations: int, saved: int | None = None
                 ) -> None:
    """Write `status.json`.

    Args:
        run: run folder.
        state: "running", "finished", "stopped" or "failed".
        step: updates that are made.
        iterations: updates of the whole run.
        saved: updates that the newest checkpoint has, where these are not all that are made.
    """
    more = {} if saved is None else {"saved": saved}
    write_atomic(run / "status.json", to_json({"state": state, "step": step,
                                               "iterations": iterations, **more}))


def _is_main() -> bool:
    """Whether this is rank 0, by what launchers set."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
