"""Checkpoints that are complete or absent.

Layout: `RUN/checkpoints/step-000500/` holds DeepSpeed's files, `model.safetensors` (weights for
inference, no DeepSpeed needed) and, written last, `COMPLETE` with the size of every file.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from more.data.shards.format import sync, to_json, write_atomic
from more.engine.distributed import World
from more.errors import UserError

MARKER = "COMPLETE"
WEIGHTS = "model.safetensors"


def save(engine: Any, folder: Path, step: int, world: World, keep: int,
         extra: dict[str, Any]) -> Path:
    """Write the state after `step` updates; all ranks call it.

    DeepSpeed's own `latest` is not used: it can name a checkpoint that another rank never
    finished. The marker is written after a barrier, atomically, and only then are older
    checkpoints removed.
    """
    tag = f"step-{step:06d}"
    target = folder / tag
    if world.main:
        shutil.rmtree(target, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    engine.save_checkpoint(str(folder), tag, client_state={"step": step, **extra},
                           save_latest=False)
    if world.main:
        weights = {name: value.detach().cpu().contiguous()
                   for name, value in engine.module.state_dict().items()}
        save_file(weights, str(target / WEIGHTS))
    world.barrier()
    if world.main:
        _commit(target, {"step": step, "world": world.size, **extra})
        _prune(folder, keep)
    world.barrier()
    return target


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint and why newer ones were passed over."""
    rejected = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = problem_of(path)
        if problem is None:
            return path, rejected
        rejected.append(f"{path.name}: {problem}")
    return None, rejected


def problem_of(path: Path) -> str | None:
    """Why a checkpoint folder cannot be used; None when it is complete."""
    marker = path / MARKER
    if not path.is_dir():
        return "no such folder"
    if not marker.is_file():
        return f"incomplete ({MARKER} is missing)"
    try:
        files = json.loads(marker.read_text())["files"]
    except (ValueError, KeyError):
        return f"{MARKER} cannot be read"
    for name, size in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, not {size}"
    return None


def info(path: Path) -> dict[str, Any]:
    """What the marker says: step, world, configuration digest, file sizes."""
    return json.loads((path / MARKER).read_text())


def resolve(run: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume auto|never|PATH` means for a run; None = start afresh.

    Only training calls it, on the rank that writes: "never" sets an earlier run aside.

    Raises:
        UserError: as `choose`.
    """
    if resume == "never":
        set_aside(run)
        return None
    return choose(run, resume)


def choose(run: Path, which: str) -> Path | None:
    """A complete checkpoint: the newest of a run ("auto") or the given folder; None without any.

    Raises:
        UserError: the given path is not a complete checkpoint; or checkpoints exist and none of
            them is complete (never a silent fresh start).
    """
    if which != "auto":
        problem = problem_of(Path(which))
        if problem:
            raise UserError(f"{which}: not a usable checkpoint: {problem}",
                            "give a complete folder RUN/checkpoints/step-…, or leave it out "
                            "to take the newest complete one")
        return Path(which)
    path, rejected = find_newest(run / "checkpoints")
    if path is None and rejected:
        raise UserError(f"{run}/checkpoints: no complete checkpoint ({'; '.join(rejected)})",
                        "remove these folders; `more train … --resume never` starts afresh")
    return path


def set_aside(run: Path) -> Path | None:
    """Move what an earlier training left in a run folder to `RUN/earlier-1` (or -2, …).

    Left in place, its later steps would count as newer than those of a training that starts
    afresh: they would be resumed and localized, and the new ones removed as old.

    Returns:
        The new folder; None where there was nothing.
    """
    left = [run / name for name in ("checkpoints", "log.jsonl", "train.log", "tensorboard",
                                    "config.json", "run.json") if (run / name).exists()]
    if not left:
        return None
    number = next(n for n in itertools.count(1) if not (run / f"earlier-{n}").exists())
    place = run / f"earlier-{number}"
    place.mkdir()
    for path in left:
        path.rename(place / path.name)
    return place


def load(engine: Any, path: Path, world: World) -> int:
    """Restore engine, optimiser and schedule; returns the number of finished updates.

    Raises:
        UserError: the checkpoint was written by another number of ranks under ZeRO 1.
    """
    written = info(path)
    if written["world"] != world.size and engine.zero_optimization_stage() > 0:
        raise UserError(
            f"{path}: written by {written['world']} ranks with ZeRO "
            f"{engine.zero_optimization_stage()}, this run has {world.size}",
            f"start {written['world']} ranks, or train with deepspeed.zero_stage=0 from the start")
    loaded, state = engine.load_checkpoint(str(path.parent), path.name)
    if loaded is None:
        raise UserError(f"{path}: DeepSpeed could not load it", "pass --resume with an older one")
    return int(state["step"])


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Read `model.safetensors` of a checkpoint folder into a network.

    Raises:
        UserError: the file is missing or damaged, or names or shapes differ.
    """
    file = path / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file}: missing", "the checkpoint is incomplete; use another one")
    try:
        weights = load_file(str(file))
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})",
                        "restore it from a copy, or use another checkpoint") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the run's configuration: {error}",
                        "use the config.json that was written with this checkpoint") from error


def _commit(target: Path, record: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        sync(path)
        files[str(path.relative_to(target))] = path.stat().st_size
    write_atomic(target / MARKER, to_json({**record, "files": files}))


def _prune(folder: Path, keep: int) -> None:
    complete = [p for p in sorted(folder.glob("step-*")) if problem_of(p) is None]
    for path in complete[:-keep]:
        (path / MARKER).unlink()
        shutil.rmtree(path)
