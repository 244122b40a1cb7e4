"""Save and restore a training run; complete or absent (see `more.train.run_folder`).

A checkpoint holds `model.safetensors` (weights for inference, no DeepSpeed needed; the average
where the run keeps one), `training.safetensors` (AdamW's moments by parameter name, and the weights
where the other file has the average), `ranks.safetensors` (random state of every rank) and
`state.json` (counts, schedule, loss scale). No pickles. It fits every ZeRO stage and number of
ranks (see `more.train.checkpoint_state`).
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from more.data.shards.format import to_json, write_file
from more.errors import UserError
from more.train import random_state
from more.train.average import WeightAverage
from more.train.checkpoint_state import (
    applied_updates,
    full_moments,
    full_weights,
    half_weights,
    set_masters,
    set_moments,
)
from more.train.distributed import World
from more.train.run_folder import (
    TRAINING,
    WEIGHTS,
    commit_folder,
    info,
    prune,
    start_folder,
    step_name,
)

STATE = "state.json"
RANKS = "ranks.safetensors"
_ROOM = 1.02  # what a file system needs beside the content


@dataclass
class Snapshot:
    """Everything of one checkpoint, on the CPU of the rank that writes."""

    step: int
    model: dict[str, Tensor] = field(default_factory=dict)
    training: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        parts = (self.model, self.training, self.ranks)
        return sum(value.nbytes for part in parts for value in part.values())


def take(engine: Any, step: int, world: World, average: WeightAverage | None = None,
         record: dict[str, Any] | None = None) -> Snapshot:
    """Collect the state after `step` updates; all ranks call it, rank 0 gets the tensors.

    Args:
        engine: DeepSpeed's.
        step: finished updates.
        world: ranks.
        average: the average of weights, if the run keeps one.
        record: JSON values for the marker (the configuration).
    """
    snapshot = Snapshot(step)

    def collect(values: Iterator[tuple[str, Tensor]], into: dict[str, Tensor],
                prefix: str = "") -> None:
        for name, value in values:
            if world.main:
                into[prefix + name] = value.detach().to("cpu", copy=True).contiguous()

    if average is None:
        collect(full_weights(engine), snapshot.model)
    else:
        collect(full_weights(engine), snapshot.training, "weights/")
        with average.in_place():
            collect(full_weights(engine), snapshot.model)
    collect(full_moments(engine), snapshot.training)
    snapshot.ranks = random_state.gather(world)
    snapshot.state = {"step": step, "updates": applied_updates(engine),
                      "scheduled": engine.lr_scheduler.last_epoch,
                      "skipped": engine.skipped_steps,
                      "averaged": None if average is None else average.updates,
                      "loss_scale": _scaler_state(engine)}
    snapshot.record = {"step": step, "world": world.size,
                       "zero_stage": engine.zero_optimization_stage(), **(record or {})}
    return snapshot


def write(snapshot: Snapshot, folder: Path, keep: int) -> Path:
    """Write a snapshot into `folder`, then remove older checkpoints; rank 0 only.

    Raises:
        UserError: too little space (nothing is left behind, older checkpoints stay).
    """
    target = folder / step_name(snapshot.step)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = int(snapshot.bytes * _ROOM), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{target}: needs {needed:,} bytes, {free:,} are free",
                        "free some space, or train into another --run folder; then run the same "
                        "command again, it continues from the last checkpoint")
    place = start_folder(target)
    try:
        save_file(snapshot.model, str(place / WEIGHTS))
        save_file(snapshot.training, str(place / TRAINING))
        save_file(snapshot.ranks, str(place / RANKS))
        write_file(place / STATE, to_json(snapshot.state))
        commit_folder(place, target, snapshot.record)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(f"{target}: cannot be written ({error}); it needs {needed:,} bytes",
                            "free some space or repair the disk, then run the same command again; "
                            "it continues from the last checkpoint") from error
        raise
    prune(folder, keep)
    return target


class Writer:
    """Writes checkpoints, in the background if asked to: then training goes on meanwhile.

    Args:
        folder: `RUN/checkpoints`.
        keep: newest checkpoints kept.
        world: ranks; every method is called by all of them.
        background: write in a thread of rank 0; at most one checkpoint is under way.
    """

    def __init__(self, folder: Path, keep: int, world: World, background: bool = False):
        self.folder, self.keep, self.world, self.background = folder, keep, world, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, or begin to.

        Raises:
            UserError: this one, or the one before it, could not be written; on every rank.
        """
        self.finish()
        if self.world.main:
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
            self._thread.start()
        if not self.background:
            self.finish()

    @property
    def busy(self) -> bool:
        """Whether this process is writing at the moment."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait for what is under way.

        Raises:
            UserError: it could not be written; on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        told = self.world.agree((error.message, error.fix) if isinstance(error, UserError)
                                else repr(error) if error else None)
        if isinstance(told, tuple):
            raise UserError(*told)
        if told is not None:
            raise error or RuntimeError(f"rank 0 could not write a checkpoint: {told}")

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write(snapshot, self.folder, self.keep)
        except BaseException as error:  # noqa: BLE001 - raised again by `finish`
            self._error = error


def training_weights(path: Path) -> dict[str, Tensor]:
    """The weights that training goes on with, by name.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _opened(path / TRAINING) as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118
        if names:
            return {name.removeprefix("weights/"): file.get_tensor(name) for name in names}
    return load_file(str(path / WEIGHTS))


def restore(engine: Any, path: Path, world: World, average: WeightAverage | None = None) -> int:
    """Put a checkpoint into a new engine that has its weights; the number of finished updates.

    Rates follow the present settings at the restored place of the schedule.
    """
    state = json.loads((path / STATE).read_text())
    with _opened(path / TRAINING) as file:
        set_moments(engine, _Lazy(file), state["updates"])
    if half_weights(engine):
        set_masters(engine, training_weights(path))
    if average is not None and state["averaged"] is not None:
        average.load(load_file(str(path / WEIGHTS)), state["averaged"])
    scheduler = engine.lr_scheduler
    scheduler.last_epoch = state["scheduled"]
    scheduler._last_lr = [base * factor(state["scheduled"]) for base, factor in zip(
        scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(engine.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
    step = state["step"]
    engine.global_steps, engine.skipped_steps = step, state["skipped"]
    engine.global_samples = step * engine.train_batch_size()
    engine.micro_steps = step * engine.gradient_accumulation_steps()
    _set_scaler(engine, state["loss_scale"])
    random_state.restore(load_file(str(path / RANKS)), world)
    return step


def check_precision(path: Path, precision: str, stage: int) -> None:
    """Refuse a change of precision that would not continue the same training.

    fp32, bf16 and bf16_weights train fp32 weights; fp16 has a loss scale of its own kind.

    Raises:
        UserError: from or to fp16.
    """
    old = info(path)["config"]["precision"]
    if old != precision and "fp16" in (old, precision):
        raise UserError(f"{path}: written with precision {old}, this run has {precision} "
                        f"(ZeRO {stage})",
                        f"go on with precision={old}, or start another run from its weights: "
                        f"--set model.weights={path / WEIGHTS}")


class _Lazy(dict):
    """Tensors of an open safetensors file, read one by one."""

    def __init__(self, file: Any):
        super().__init__()
        self.file = file

    def __missing__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read on this rank ({error})",
                        "every machine must see the run folder; give a path on a shared disk, or "
                        "use another checkpoint") from error


def _scaler_state(engine: Any) -> dict[str, float] | None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not engine.fp16_enabled() or scaler is None:
        return None
    return {key: value for key, value in vars(scaler).items() if isinstance(value, (int, float))}


def _set_scaler(engine: Any, state: dict[str, float] | None) -> None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if state and engine.fp16_enabled() and scaler is not None:
        vars(scaler).update(state)
