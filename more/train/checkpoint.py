"""The state of a training as a checkpoint: taken from the engine, and put back into a new one.

A checkpoint holds `model.safetensors` (weights for inference, no DeepSpeed needed; the average
where the run keeps one), `training.safetensors` (AdamW's moments by parameter name, and the weights
where the other file has the average), `ranks.safetensors` (random state of every rank) and
`state.json` (counts, schedule, loss scale). No pickles. It fits every ZeRO stage and number of
ranks (see `more.train.checkpoint_state`). `more.train.checkpoint_files` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from more.errors import UserError
from more.run_folder import TRAINING, WEIGHTS, info
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

    Returns:
        The snapshot; its tensors are empty on ranks other than 0.
    """
    snapshot = Snapshot(step)

    def collect(values: Iterator[tuple[str, Tensor]], into: dict[str, Tensor],
                prefix: str = "") -> None:
        """Copy tensors to the CPU's memory, on rank 0."""
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


def training_weights(path: Path) -> dict[str, Tensor]:
    """The weights that training goes on with, by name.

    Args:
        path: folder of a checkpoint.

    Returns:
        Whole tensors on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _opened(path / TRAINING) as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118
        if names:
            return {name.removeprefix("weights/"): file.get_tensor(name) for name in names}
    return load_file(str(path / WEIGHTS))


def restore(engine: Any, path: Path, world: World, average: WeightAverage | None = None) -> int:
    """Put a checkpoint into a new engine that has its weights.

    Learning rates follow the present settings at the restored place of the schedule.

    Args:
        engine: DeepSpeed's, new.
        path: folder of the checkpoint.
        world: ranks; all of them call it.
        average: the average of weights, if the run keeps one.

    Returns:
        The number of finished updates.
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

    Args:
        path: folder of a checkpoint.
        precision: of this run.
        stage: ZeRO stage of this run, for the message.

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
    """An open safetensors file; a UserError where it cannot be read."""
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read on this rank ({error})",
                        "every machine must see the run folder; give a path on a shared disk, or "
                        "use another checkpoint") from error


def _scaler_state(engine: Any) -> dict[str, float] | None:
    """Numbers of fp16's loss scale; None where there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not engine.fp16_enabled() or scaler is None:
        return None
    return {key: value for key, value in vars(scaler).items() if isinstance(value, (int, float))}


def _set_scaler(engine: Any, state: dict[str, float] | None) -> None:
    """Put back what `_scaler_state` returned."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if state and engine.fp16_enabled() and scaler is not None:
        vars(scaler).update(state)
