"""Where the time of updates goes: by phase, and how busy the device is."""

from __future__ import annotations

import time

import torch

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
