"""Records of a run: `log.jsonl`, TensorBoard, `train.log` and the line on the terminal."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.logging import MMLogger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import more
from more.config.load import to_dict
from more.config.schema import Config
from more.data.shards.format import make_folder, to_json, write_atomic
from more.data.shards.quarantine import Damaged
from more.data.shards.reader import ShardSet
from more.progress import console
from more.train.deepspeed_settings import BatchSplit
from more.train.distributed import World
from more.train.meter import Meter


class Records:
    """Writes what a run reports; on ranks other than 0 every call does nothing.

    Args:
        run: run folder.
        main: True on the rank that writes.
        iterations: updates of the whole run.
        start: updates that are done; TensorBoard hides what it has of later ones.
    """

    def __init__(self, run: Path, main: bool, iterations: int, start: int = 0):
        self.run, self.main, self.iterations, self.bar = run, main, iterations, None
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        make_folder(run)
        self.file = _open_log(run / "log.jsonl")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
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

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One JSON line; numbers inside nested dicts also become TensorBoard curves.

        Args:
            step: finished updates.
            record: JSON values.
        """
        if not self.main:
            return
        self.file.write(json.dumps({"step": step, "time": time.time(), **record}) + "\n")
        self.file.flush()
        for group, value in record.items():
            values = value if isinstance(value, dict) else {"": value}
            for name, number in values.items():
                if isinstance(number, (int, float)):
                    self.board.add_scalar(f"{group}/{name}".rstrip("/"), number, step)

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

    def progress(self, done: int, meter: Meter) -> None:
        """Move the bar on a terminal.

        Args:
            done: finished updates.
            meter: knows rate and loss.
        """
        if not self.main or not console.is_terminal:
            return
        if self.bar is None:
            self.bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.2f} img/s"),
                TextColumn("loss {task.fields[loss]:.4g}"),
                TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task("", total=self.iterations, completed=done - 1, rate=0.0,
                                          loss=0.0)
            self.bar.start()
        self.bar.update(self.task, completed=done, rate=meter.rate, loss=meter.last_total)

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

    def close(self) -> None:
        """Flush and close the files."""
        if self.main:
            if self.bar is not None:
                self.bar.stop()
            self.file.close()
            self.board.close()


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
                 sources: Mapping[str, Any], left_out: Sequence[Damaged]) -> None:
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
    """
    run = records.run
    write_atomic(run / "config.json", to_json(to_dict(config)))
    about = {"version": more.__version__, "classes": train_set.class_names,
             "train": str(Path(train_set.path).resolve()),
             "val": str(Path(val_set.path).resolve()) if val_set else None,
             "ranks": world.size, "torch": torch.__version__, "stage": config.stage, **sources}
    write_atomic(run / "run.json", to_json(about))
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
