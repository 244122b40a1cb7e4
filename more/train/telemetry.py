"""Records of a run: `log.jsonl`, TensorBoard, Weights & Biases, `train.log` and the terminal."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import MMLogger

import more
from more.config.load import to_dict
from more.config.schema import Config
from more.data.shards.format import make_folder, to_json, write_atomic
from more.data.shards.quarantine import Damaged
from more.data.shards.reader import ShardSet
from more.progress import console
from more.train.board import Board
from more.train.deepspeed_settings import BatchSplit
from more.train.distributed import World
from more.train.live_line import LiveLine
from more.train.meter import Meter
from more.train.wandb_log import WandbLog


class Records:
    """Writes what a run reports; on ranks other than 0 every call does nothing.

    Args:
        run: run folder.
        main: True on the rank that writes.
        iterations: updates of the whole run.
        start: updates that are done; TensorBoard hides what it has of later ones.
    """

    def __init__(self, run: Path, main: bool, iterations: int, start: int = 0):
        self.run, self.main, self.iterations, self.start = run, main, iterations, start
        self.live: LiveLine | None = None
        if not main:
            return
        make_folder(run)
        self.file = _open_log(run / "log.jsonl")
        self.board = Board(run, start)
        self.loggers: list[Board | WandbLog] = [self.board]
        self.logger = MMLogger("more", logger_name="more", log_file=str(run / "train.log"))
        if console.is_terminal:
            for handler in self.logger.handlers:  # lines go above the bar, not through it
                if type(handler) is logging.StreamHandler:
                    handler.setStream(_Above())

    def say(self, text: str) -> None:
        """A line on the terminal and in train.log.

        Args:
            text: one line.
        """
        if self.main:
            self.logger.info(text)

    def begin(self, config: Config, world: World, routes: Sequence[str],
              about: Mapping[str, Any]) -> None:
        """Tell the loggers what is trained, and Weights & Biases if it is asked for.

        Args:
            config: settings.
            world: ranks.
            routes: what evaluations score; none where nothing is scored.
            about: what else is to be seen of the run.
        """
        if not self.main:
            return
        self.board.begin(config, world, routes)
        if config.telemetry.wandb:
            self.loggers.append(WandbLog(self.run, config, about, self.say))

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One JSON line; numbers inside nested dicts also become curves.

        Args:
            step: finished updates.
            record: JSON values.
        """
        if not self.main:
            return
        self.file.write(json.dumps({"step": step, "time": time.time(), **record}) + "\n")
        self.file.flush()
        curves = {f"{group}/{name}".rstrip("/"): number for group, value in record.items()
                  for name, number in (value if isinstance(value, dict) else {"": value}).items()
                  if isinstance(number, (int, float))}
        for logger in self.loggers:
            logger.scalars(step, curves)

    def show(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Hand pictures of the validation set to the loggers.

        Args:
            step: finished updates.
            pictures: RGB uint8 `[H, W, 3]` by the images' ids.
        """
        for logger in self.loggers if self.main and pictures else ():
            logger.pictures(step, pictures)

    def evaluated(self, step: int) -> bool:
        """Whether the log has scores of the weights after `step` updates; rank 0 only.

        Args:
            step: finished updates.

        Returns:
            Whether there are scores.
        """
        for line in (self.run / "log.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, AttributeError):  # a line that a kill has cut off
                record = json.loads(line)
                if record.get("step") == step and "eval" in record:
                    return True
        return False

    def updates_begin(self, config: Config) -> None:
        """The first update of this start is about to be made.

        Args:
            config: settings.
        """
        if self.main:
            self.live = LiveLine(self.start, self.iterations, config.train.global_batch, self.say,
                                 config.train.log_every)

    def progress(self, done: int, meter: Meter) -> None:
        """An update is asked for.

        Args:
            done: updates that are asked for.
            meter: knows the loss.
        """
        if self.live is not None:
            self.live.update(done, meter.last_total, known=meter.read_any)

    def paused(self) -> None:
        """What went on between the last update and now does not count for the rate."""
        if self.live is not None:
            self.live.pause()

    def line(self, done: int, record: dict[str, Any]) -> None:
        """The line of a record: terms, throughput, time left.

        Args:
            done: finished updates.
            record: from `Meter.read`.
        """
        left = (self.iterations - done) * record["seconds_per_step"]
        terms = " ".join(f"{name} {value:.4g}" for name, value in record["terms"].items())
        self.say(f"[{done}/{self.iterations}] {terms} | {record['images_per_s']:.2f} img/s, "
                 f"eta {duration(left)}")

    def close(self, state: str = "finished") -> None:
        """Flush and close everything; state as in `status.json`."""
        if self.main:
            if self.live is not None:
                self.live.close()
            self.file.close()
            for logger in self.loggers:
                logger.close(state)


def _open_log(path: Path) -> IO[str]:
    """The log, to be written on; a last line that a kill has cut off is ended first."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    if file.tell():
        with open(path, "rb") as there:
            there.seek(-1, 2)
            if there.read() != b"\n":
                file.write("\n")
    return file


class _Above:
    """Where a log handler writes while the bar is drawn."""

    def write(self, text: str) -> None:
        """Print a line above the bar.

        Args:
            text: the line.
        """
        if text.strip():
            console.print(text.rstrip("\n"), highlight=False, markup=False)

    def flush(self) -> None:
        """Nothing waits."""


def duration(seconds: float) -> str:
    """`1:02:03` for a number of seconds.

    Args:
        seconds: 0 or more.

    Returns:
        Hours, minutes and seconds.
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def describe_run(records: Records, config: Config, world: World, split: BatchSplit,
                 network: torch.nn.Module, train_set: ShardSet, val_set: ShardSet | None,
                 sources: Mapping[str, Any], left_out: Sequence[Damaged],
                 routes: Sequence[str] = ()) -> None:
    """Write a run's settings and say what is about to happen; rank 0 only.

    Args:
        records: of the run.
        config: settings, with what they left to the machine.
        world: ranks.
        split: how the global batch is spread.
        network: counted by its parameters, which ZeRO may have cut.
        train_set: images that are trained on.
        val_set: images that are scored, or None.
        sources: what else `run.json` says the run was made from.
        left_out: damaged images.
        routes: what evaluations score.
    """
    run = records.run
    write_atomic(run / "config.json", to_json(to_dict(config)))
    about = {"version": more.__version__, "classes": train_set.class_names,
             "train": str(Path(train_set.path).resolve()),
             "val": str(Path(val_set.path).resolve()) if val_set else None,
             "ranks": world.size, "torch": torch.__version__, "stage": config.stage, **sources}
    write_atomic(run / "run.json", to_json(about))
    records.begin(config, world, routes if val_set else (), about)
    if left_out:
        write_atomic(run / "quarantine.json", to_json([asdict(item) for item in left_out]))
        records.say(f"{len(left_out)} damaged images are left out (data.quarantine), "
                    f"{run / 'quarantine.json'} names them")
    records.say(
        f"{config.name}: {_parameters(network)}, {len(train_set)} images, "
        f"{world.size} rank(s) on {world.device.type}, global batch {split.global_batch} = "
        f"{world.size} × {split.micro} × {split.accumulation}, {config.precision}, ZeRO "
        f"{config.deepspeed.zero_stage}, {config.train.iterations} iterations")


def _parameters(network: torch.nn.Module) -> str:
    """How many parameters a network has, and how many of them are trained if not all are."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()) / 1e6, parameter.requires_grad)
             for parameter in network.parameters()]
    everything, trained = sum(size for size, _ in sizes), sum(size for size, on in sizes if on)
    return f"{everything:.1f} M parameters" + (
        f" ({trained:.2f} M trained)" if trained < everything else "")
