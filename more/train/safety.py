"""What guards a run: a limit on updates that are not finite, and on the time of a step.

- Losses and gradients that are not finite: no rank updates (`more.train.optimizer`), and the images
  are written down.
- A step that takes too long ends the run, with the stack of every rank.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path

import torch

from more.data.shards.format import make_folder, to_json, write_atomic
from more.errors import UserError
from more.train.distributed import World


class Guard:
    """Counts left-out updates and stops the run when there are more than allowed.

    Args:
        run: run folder; the images go to `nonfinite/step-000123.json`.
        allowed: how many updates may be left out.
        scaled: fp16: a gradient too large for its loss scale is usual and not counted.
    """

    def __init__(self, run: Path, allowed: int, scaled: bool):
        self.run, self.allowed, self.scaled, self.skipped = run, allowed, scaled, 0

    def left_out(self, step: int, images: list[str], terms: dict[str, float],
                 world: World) -> Path | None:
        """An update was left out on every rank; all ranks call it.

        Args:
            step: its number.
            images: ids of this rank's images in it.
            terms: this rank's loss terms.
            world: ranks.

        Returns:
            The file that names the images of all ranks; None for a step that fp16's loss scale
            explains.

        Raises:
            UserError: more than allowed, on every rank.
        """
        finite = torch.isfinite(torch.tensor(list(terms.values()))).all()
        reports = world.gather({"rank": world.rank, "images": images, "finite_loss": bool(finite),
                                "terms": {name: repr(value) for name, value in terms.items()}})
        if self.scaled and all(report["finite_loss"] for report in reports):
            return None
        self.skipped += 1
        path = self.run / "nonfinite" / f"step-{step:06d}.json"
        if world.main:
            make_folder(path.parent)
            write_atomic(path, to_json({"step": step, "ranks": reports}))
        if self.skipped > self.allowed:
            bad = [report["rank"] for report in reports if not report["finite_loss"]]
            where = f"the loss of rank {', '.join(map(str, bad))}" if bad else "a gradient"
            raise UserError(
                f"iteration {step}: {where} is not finite; no rank has updated, {path} names the "
                "images and terms",
                "look at these images, lower optim.lr, or leave such updates out with "
                "train.skip_nonfinite")
        return path


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
