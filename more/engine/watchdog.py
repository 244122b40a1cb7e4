"""A time limit on every step, with the stack of every rank when it runs out."""

from __future__ import annotations

import faulthandler
from pathlib import Path

from more.data.shards.format import make_folder


class Watchdog:
    """Ends this process when a step takes too long: one rank sleeps, the others wait for it.

    Every rank writes the stacks of all its threads to `RUN/stacks/rank-0.txt` and ends; the file
    of the rank that does not wait in a collective shows what it was doing. A timer of the
    interpreter does it, so it works while Python itself hangs.

    Args:
        run: run folder.
        rank: of this process.
        seconds: limit.
    """

    def __init__(self, run: Path, rank: int, seconds: float):
        self.path, self.seconds = run / "stacks" / f"rank-{rank}.txt", seconds
        make_folder(self.path.parent)
        self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - open until `close`

    def rearm(self) -> None:
        """Start the clock anew; call it once a step."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    def disarm(self) -> None:
        """Stop the clock: what follows may take longer."""
        faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Stop the clock for good."""
        self.disarm()
        self._file.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()
