"""What is measured of updates, in reading order:

- `Phases`: seconds by phase, and how busy the device is.
- `Meter`: means of loss terms, throughput and phases between two records.
- `Means`: the terms' means over ranks, read when nothing has to wait for them.
- `Trace`: some updates in full (`train.profile`), for ui.perfetto.dev.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from more.data.shards.format import make_folder
from more.device import local_device
from more.tensors import Download
from more.train.distributed import ALONE, World

WAITING, FORWARD, CAMS, LOSSES, BACKWARD, UPDATE, REST = PHASES = (
    "data", "forward", "cams", "losses", "backward", "update", "rest")


class Phases:
    """Seconds between marks.

    On a GPU they are those of its stream, read only at `read`: nothing waits for the device in
    between.

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
        """The phase that begins here; it ends at the next mark.

        Args:
            phase: one of `PHASES`.
        """
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
        """How busy the device is, 0..1.

        Of a GPU as its driver says at this moment; on a CPU the part of this process's threads that
        computed since `restart`.

        Returns:
            The share; None where the driver does not say (a part of a GPU, or nvidia-ml-py is not
            installed).
        """
        if self.cuda:
            try:
                return torch.cuda.utilization(self.device) / 100
            except Exception:  # noqa: BLE001 - the driver's own errors; training goes on without
                return None
        passed = max(time.monotonic() - self.started, 1e-9)
        return (time.process_time() - self.processor) / passed / torch.get_num_threads()


class Meter:
    """Means of loss terms, throughput and phases between two records.

    Attributes:
        last_total: loss of the newest update that was counted.
        read_any: whether any ever was.
    """

    def __init__(self, device: torch.device = ALONE.device) -> None:
        self.phases = Phases(device)
        self.last_total, self.read_any = float("nan"), False
        self.restart()

    def restart(self) -> None:
        """Begin anew, after a record or a pause."""
        self.sums: dict[str, float] = {}
        self.steps, self.images, self.waiting = 0, 0, 0.0
        self.phases.restart()
        self.started = time.monotonic()

    def add(self, terms: dict[str, float], images: int, waiting: float) -> None:
        """Count one update.

        Args:
            terms: its loss terms, means over ranks.
            images: of all ranks.
            waiting: seconds that this rank waited for data.
        """
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.last_total, self.read_any = terms.get("total", float("nan")), True
        self.steps += 1
        self.images += images
        self.waiting += waiting

    def read(self, world: World) -> dict[str, Any]:
        """What happened since the last record, over all ranks; all ranks call it.

        Args:
            world: ranks.

        Returns:
            `terms` (means), `images_per_s`, `seconds_per_step`, `data_wait` (share of the time),
            `memory_mb` (most of any rank: CUDA's peak, or the process's memory), and `ranks`:
            least and most seconds a step apart from waiting for data, most seconds of waiting;
            `phases`: seconds a step by phase, mean of the ranks; `utilisation`: mean and
            least, where it is known.
        """
        phases, utilisation = self.phases.read(), self.phases.utilisation()
        seconds, steps = max(time.monotonic() - self.started, 1e-9), max(self.steps, 1)
        own = {"busy": (seconds - self.waiting) / steps, "wait": self.waiting / steps,
               "memory": _memory_mb(), "utilisation": utilisation,
               "phases": {name: phases.get(name, 0.0) / steps for name in PHASES}}
        everyone = world.gather(own)
        result = {"terms": {name: value / steps for name, value in self.sums.items()},
                  "images_per_s": self.images / seconds, "seconds_per_step": seconds / steps,
                  "data_wait": self.waiting / seconds,
                  "memory_mb": max(one["memory"] for one in everyone),
                  "ranks": {"busy_least": min(one["busy"] for one in everyone),
                            "busy_most": max(one["busy"] for one in everyone),
                            "wait_most": max(one["wait"] for one in everyone)},
                  "phases": {name: fmean(one["phases"][name] for one in everyone)
                             for name in PHASES if name in phases}}
        busy = [one["utilisation"] for one in everyone if one["utilisation"] is not None]
        if busy:
            result["utilisation"] = {"mean": fmean(busy), "least": min(busy)}
        self.restart()
        return result


def _memory_mb() -> float:
    """MiB: the most that this process has held on its GPU, or its memory on a CPU."""
    if local_device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20


class Means:
    """Hands the means of updates to a meter, and knows whether a rank has asked to stop.

    On a GPU those of an update are read after the next one has been asked for: by then they have
    arrived, and the GPU has work meanwhile. All ranks put and flush at the same updates, so that
    they learn of a request at the same one: on a GPU an update after it was put, or at a flush.

    Args:
        meter: takes the terms.
        late: read an update late; else at once.

    Attributes:
        stopping: whether a rank had asked to stop, in what has been read.
    """

    def __init__(self, meter: Meter, late: bool):
        self.meter, self.late, self.stopping = meter, late, False
        self.under_way: tuple[list[str], Download, int, float] | None = None

    def put(self, names: Sequence[str], values: torch.Tensor, images: int, waiting: float) -> None:
        """The means of an update.

        Args:
            names: of the terms.
            values: `[terms + 1]` over all ranks; the last is above 0 where one asks to stop.
            images, waiting: see `Meter.add`.
        """
        self.flush()
        self.under_way = list(names), Download(values), images, waiting
        if not self.late:
            self.flush()

    def flush(self) -> None:
        """Read what has not been read: before a record, a checkpoint or an evaluation."""
        if self.under_way is None:
            return
        (names, values, images, waiting), self.under_way = self.under_way, None
        *terms, asked = values.read()
        self.meter.add(dict(zip(names, terms, strict=True)), images, waiting)
        self.stopping |= asked > 0


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
        """Update number `step` comes; a run that goes on inside the span is recorded from there.

        Args:
            step: number of the update.
        """
        if self.recorder is None and self.begin <= step < self.end:
            kinds = [ProfilerActivity.CPU] + (
                [ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
            self.recorder, self.begin = profile(activities=kinds), step
            self.recorder.start()

    def after(self, step: int) -> None:
        """Update number `step` is done.

        Args:
            step: number of the update.
        """
        if self.recorder is not None and step + 1 >= self.end:
            self.close(step + 1)

    def close(self, end: int) -> None:
        """Write what is recorded, up to update `end` (exclusive); the run may have been stopped.

        Args:
            end: number of the update after the last recorded one.
        """
        if self.recorder is None:
            return
        recorder, self.recorder = self.recorder, None
        recorder.stop()
        make_folder(self.folder)
        path = self.folder / f"updates-{self.begin}-{end}.json.gz"
        recorder.export_chrome_trace(str(path))
        self.say(f"updates {self.begin} to {end - 1} are recorded in {path}: open it in "
                 "ui.perfetto.dev")
