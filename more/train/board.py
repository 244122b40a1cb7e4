"""TensorBoard files of a run: curves, pictures, and the settings with the scores they led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from more.config.load import flatten
from more.config.schema import Config
from more.train.distributed import World

FOLDER = "tensorboard"


class Board:
    """Writes `RUN/tensorboard`.

    Args:
        run: run folder.
        start: updates that are done; TensorBoard hides what it has of later ones.
    """

    def __init__(self, run: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self._continued = any((run / FOLDER).glob("events.*"))
        self.writer = SummaryWriter(str(run / FOLDER), purge_step=start + 1)
        self._ended: Any = None

    def begin(self, config: Config, world: World, routes: Sequence[str]) -> None:
        """Put the run among those of the tab "HParams"; its columns are the settings and the newest
        values of the loss and of the scores.

        Args:
            config: settings.
            world: ranks.
            routes: what evaluations score; none where nothing is scored.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = dict.fromkeys(["terms/total", *(f"eval/{name}" for name in routes)], 0.0)
        experiment, started, self._ended = hparams(
            {"ranks": world.size, **hyperparameters(config)}, metrics)
        if not self._continued:  # an earlier start of the run has
            for summary in (experiment, started):
                self.writer.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves.

        Args:
            step: finished updates.
            values: numbers by the names of their curves.
        """
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """RGB pictures uint8 `[H, W, 3]` by the images' ids.

        Args:
            step: finished updates.
            pictures: RGB uint8 `[H, W, 3]` by the images' ids.
        """
        for name, picture in pictures.items():
            self.writer.add_image(f"pictures/{name}", picture, step, dataformats="HWC")
        self.writer.flush()

    def close(self, state: str) -> None:
        """Write what is left.

        Args:
            state: as in `status.json`.
        """
        if state == "finished" and self._ended is not None:
            self.writer.file_writer.add_summary(self._ended)
        self.writer.close()


def hyperparameters(config: Config) -> dict[str, int | float | str]:
    """All settings by their dotted keys; what is neither a number nor text as text.

    Args:
        config: settings.

    Returns:
        Values by key.
    """
    return {key: value if type(value) in (int, float, str) else str(value)
            for key, value, _ in flatten(config) if key != "stage_two"}
