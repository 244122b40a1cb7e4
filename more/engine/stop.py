"""Stopping on request, and what a run says of itself in `status.json`.

SIGTERM or SIGUSR1 to a training process, or a file `stop` in the run folder, ends the run at the
next step boundary with a checkpoint; the same command continues it.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from more.data.shards.format import to_json, write_atomic
from more.engine.distributed import World

STOPPED = 75
"""Exit code of a run that stopped on request (EX_TEMPFAIL: try again later)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether somebody asked this process to stop; use as a context manager around the loop.

    Args:
        run: run folder.
        world: ranks; rank 0 looks for the file.
    """

    def __init__(self, run: Path, world: World):
        self.file, self.world, self.signalled = run / "stop", world, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.world.main:
            self.file.unlink(missing_ok=True)

    def asked(self) -> bool:
        """Whether this rank knows of a request; the ranks have to agree on it."""
        return self.signalled or (self.world.main and self.file.exists())

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True


def exit_code() -> int:
    """The code to end a stopped run with.

    Under torchrun 0, since it restarts the group when a process fails; launch/train.sh then reads
    `status.json` and ends with `STOPPED` itself.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def finished(run: Path) -> bool:
    """Whether `status.json` of a run folder says that training came to its end."""
    try:
        return json.loads((run / "status.json").read_text("utf-8")).get("state") == "finished"
    except (OSError, ValueError):
        return False


def write_status(run: Path, state: str, step: int, iterations: int) -> None:
    """Write `status.json`: state is "running", "finished", "stopped" or "failed"."""
    write_atomic(run / "status.json", to_json({"state": state, "step": step,
                                               "iterations": iterations}))
