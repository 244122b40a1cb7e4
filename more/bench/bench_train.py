"""`more bench train`: what DeepSpeed and checkpoints add to a step, and where its time goes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from more.bench.deepspeed_cost import AGREE, bench_engine, short
from more.bench.drawn_step import OtherStep
from more.bench.measure import show, show_tables
from more.bench.step_parts import bench_step
from more.config.load import load_config
from more.config.recipes import PACKAGED
from more.config.schema import Config, StartConfig
from more.device import keep_freed_memory, local_device
from more.errors import UserError
from more.train.distributed import settled_here

MICRO = PACKAGED / "shapes_micro.py"
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")


def bench_settings(file: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Settings to measure: every term counts from the start, no weights are read.

    Args:
        file: None takes the micro ViT at 64 px, 8×8 patches.
        overrides: `key=value` on top.

    Raises:
        UserError: a precision whose bare loop would be another training.
    """
    config = load_config(file or MICRO, [*([] if file else ["data.crop=64"]), *overrides])
    config = settled_here(config, local_device(), 1)
    if config.precision not in AGREE:
        raise UserError(f"precision = {config.precision}: DeepSpeed keeps other weights then, so "
                        "there is nothing to compare", "measure fp32 or bf16")
    return replace(
        config, model=replace(config.model, weights="none"),
        head_warmup=replace(config.head_warmup, updates=0), cam=replace(config.cam, ema=False),
        optim=replace(config.optim, clip=0.0, frozen_steps=0),
        train=replace(config.train, micro_batch=0, compile="", ema=0.0),
        loss=replace(config.loss, start=StartConfig(**dict.fromkeys(vars(StartConfig()), -1))))


@dataclass(frozen=True)
class StepChoice:
    """What to measure of the step itself: see `more.bench.step_parts.bench_step`.

    Attributes:
        only: leave DeepSpeed and checkpoints out.
        other: another step to hold this one against, or None.
        backend: of torch.compile, or "".
        picture: file for the parts as a picture, or None.
    """

    only: bool = False
    other: OtherStep | None = None
    backend: str = ""
    picture: Path | None = None


def run(file: Path | None = None, steps: int = 20, rounds: int = 5, as_json: bool = False,
        overrides: Sequence[str] = (), choice: StepChoice = StepChoice()) -> None:  # noqa: B008
    """Measure and print; pictures and checkpoints go to a temporary folder."""
    config, lines, about = bench_settings(file, overrides), [], {}
    if not choice.only:
        with tempfile.TemporaryDirectory(prefix="more-bench-") as scratch:
            lines, about = bench_engine(config, Path(scratch), steps=steps, rounds=rounds)
    torch.set_num_threads(config.train.threads or len(os.sched_getaffinity(0)))
    device = local_device()
    if device.type == "cpu":
        keep_freed_memory()
    found, facts, parts = bench_step(config, rounds=rounds, other=choice.other,
                                     backend=choice.backend, device=device)
    about |= {"device": str(device), "threads": torch.get_num_threads(),
              "precision": config.precision, "backbone": config.model.backbone,
              "crop": config.data.crop, "batch": config.train.global_batch, "rounds": rounds,
              **{key: short(value) for key, value in facts.items()}}
    if choice.picture:
        draw_parts(parts, choice.picture, f"a training step, {config.model.backbone}, "
                   f"{config.data.crop} px, batch {config.train.global_batch}, {device}")
    shares = [{"step": name, **part} for name, part in parts.items()]
    if as_json:
        show_tables("train", {"rows": list(map(asdict, lines)), "step": list(map(asdict, found)),
                              "seconds by part": shares}, about, [], as_json)
        return
    if lines:
        show("train", lines, {}, "step", False)
    show("a whole step", found, {}, "step", False)
    show_tables("train", {"seconds by part": shares}, about, [], False)


def draw_parts(parts: Mapping[str, Mapping[str, float]], file: Path, title: str) -> None:
    """Write one bar a step, its parts stacked, with seconds and the ratio to the slowest.

    Args:
        parts: seconds by part, by step.
        file: a name that matplotlib can write, such as .png or .svg.
        title: above the picture.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    slowest = max(sum(one.values()) for one in parts.values())
    names = sorted(parts, key=lambda name: -sum(parts[name].values()))
    figure, axes = pyplot.subplots(figsize=(9, 1.7 + 0.75 * len(names)), layout="constrained")
    labels = list(next(iter(parts.values())))
    for row, name in enumerate(names):
        _draw_bar(axes, row, {part: parts[name][part] for part in labels}, slowest)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * slowest)
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: the picture cannot be written ({error})",
                        "give a path ending in .png in a folder that exists") from error
    finally:
        pyplot.close(figure)


def _draw_bar(axes: Any, row: int, seconds: Mapping[str, float], slowest: float) -> None:
    """The bar of one step, with its seconds and the ratio to the slowest step."""
    left = 0.0
    for (part, width), colour in zip(seconds.items(), COLOURS, strict=False):
        axes.barh(row, width, left=left, color=colour, height=0.62,
                  label=part if row == 0 else None)
        if width > 0.06 * slowest:
            axes.text(left + width / 2, row, f"{width:.2g}", ha="center", va="center",
                      color="white", fontsize=9)
        left += width
    ratio = slowest / left
    axes.text(left + 0.01 * slowest, row, f"{left:.3g} s"
              + (f", {ratio:.2f} × as fast" if ratio > 1.005 else ""), va="center", fontsize=9)
