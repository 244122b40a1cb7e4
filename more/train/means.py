"""The means of loss terms over ranks, read when nothing has to wait for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from more.tensors import Download
from more.train.telemetry import Meter


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
