"""A trace of some updates (`train.profile`), for ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from more.data.shards.format import make_folder


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
