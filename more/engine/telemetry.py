"""Records of a run: `log.jsonl`, TensorBoard, `train.log` and the line on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

from more.data.shards.format import make_folder


class Records:
    """Writes what a run reports; on ranks other than 0 every call does nothing.

    Args:
        run: run folder.
        main: True on the rank that writes.
    """

    def __init__(self, run: Path, main: bool):
        self.main = main
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        make_folder(run)
        self.file = open(run / "log.jsonl", "a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"))
        self.logger = MMLogger("more", logger_name="more", log_file=str(run / "train.log"))

    def say(self, text: str) -> None:
        """A line on the terminal and in train.log."""
        if self.main:
            self.logger.info(text)

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One JSON line; numbers inside nested dicts also become TensorBoard curves."""
        if not self.main:
            return
        self.file.write(json.dumps({"step": step, "time": time.time(), **record}) + "\n")
        self.file.flush()
        for group, value in record.items():
            values = value if isinstance(value, dict) else {"": value}
            for name, number in values.items():
                if isinstance(number, (int, float)):
                    self.board.add_scalar(f"{group}/{name}".rstrip("/"), number, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self.main:
            self.file.close()
            self.board.close()


class Meter:
    """Means of loss terms and throughput between two records."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps, self.images, self.waiting = 0, 0, 0.0
        self.started = time.monotonic()

    def add(self, terms: dict[str, float], images: int, waiting: float) -> None:
        """Count one update with its terms, global images and seconds waited for data."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.images += images
        self.waiting += waiting

    def read(self) -> dict[str, Any]:
        """`terms` (means), `images_per_s`, `seconds_per_step`, `data_wait` (share); resets."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps = max(self.steps, 1)
        result = {"terms": {name: value / steps for name, value in self.sums.items()},
                  "images_per_s": self.images / seconds, "seconds_per_step": seconds / steps,
                  "data_wait": self.waiting / seconds}
        self.__init__()
        return result


def duration(seconds: float) -> str:
    """`1:02:03` for a number of seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
