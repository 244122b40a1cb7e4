"""Where the time of updates goes: seconds by phase, and a trace of some updates.

Where the time of updates goes: by phase, and how busy the device is.

A trace of some updates (`train.profile`), for ui.perfetto.dev.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from more.data.shards.format import make_folder

WAITING, FORWARD, CAMS, LOSSES, BACKWARD, UPDATE, REST = PHASES = (
    "data", "forward", "cams", "losses", "backward", "update", "rest")


class Phases:
    """Seconds between marks. On a GPU they are those of its stream, read only at `read`: nothing
    waits for the device in between.

    Args:
        device: of this rank.
    """

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin anew, after a record or a pause."""
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark(REST)
        self.started, self.processor = time.monotonic(), time.process_time()

    def mark(self, phase: str) -> None:
        """The phase that begins here; it ends at the next mark."""
        if not self.cuda:
            self.marks.append((phase, time.monotonic()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((phase, event))

    def read(self) -> dict[str, float]:
        """Seconds by phase since `restart`; waits for the device."""
        self.mark(REST)
        if self.cuda:
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = {}
        for (phase, begun), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            took = begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
            seconds[phase] = seconds.get(phase, 0.0) + took
        return seconds

    def utilisation(self) -> float | None:
        """How busy: of a GPU as its driver says at this moment; on a CPU the part of this process's
        threads that computed since `restart`; 0..1. None where the driver does not say (a part of
        a GPU, or nvidia-ml-py is not installed)."""
        if self.cuda:
            try:
                return torch.cuda.utilization(self.device) / 100
            except Exception:  # noqa: BLE001 - the driver's own errors; training goes on without
                return None
        passed = max(time.monotonic() - self.started, 1e-9)
        return (time.process_time() - self.processor) / passed / torch.get_num_threads()


class Trace:
    """Records updates FROM to TO - 1 of this rank into `RUN/profile/updates-FROM-TO.json.gz`.

    Args:
        span: `train.profile`; "" records nothing.
        run: run folder.
        device: of this rank.
        say: told the file.
        main: False on ranks that record nothing.
    """

    def __init__(self, span: str, run: Path, device: torch.device, say: Callable[[str], None],
                 main: bool = True):
        self.begin, self.end = map(int, span.split(":")) if span and main else (0, 0)
        self.folder, self.device, self.say = run / "profile", device, say
        self.recorder: profile | None = None

    def before(self, step: int) -> None:
        """Update number `step` comes; a run that goes on inside the span is recorded from there."""
        if self.recorder is None and self.begin <= step < self.end:
            kinds = [ProfilerActivity.CPU] + (
                [ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
            self.recorder, self.begin = profile(activities=kinds), step
            self.recorder.start()

    def after(self, step: int) -> None:
        """Update number `step` is done."""
        if self.recorder is not None and step + 1 >= self.end:
            self.close(step + 1)

    def close(self, end: int) -> None:
        """Write what is recorded, up to update `end` (exclusive); the run may have been stopped."""
        if self.recorder is None:
            return
        recorder, self.recorder = self.recorder, None
        recorder.stop()
        make_folder(self.folder)
        path = self.folder / f"updates-{self.begin}-{end}.json.gz"
        recorder.export_chrome_trace(str(path))
        self.say(f"updates {self.begin} to {end - 1} are recorded in {path}: open it in "
                 "ui.perfetto.dev")
