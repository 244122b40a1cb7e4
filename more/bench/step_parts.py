"""A whole training step by part, against another one, and against the machine.

The terms of both steps are compared before anything is timed.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from more.bench.drawn_step import PARTS, OtherStep, OwnStep, Stopwatch, drawn_example
from more.bench.flops import gemm_peak, step_flops
from more.bench.measure import Row, rows
from more.config.schema import Config
from more.method.cam import resize
from more.method.labels import cam_to_label
from more.method.make_network import make_network
from more.plan.activations import step_activations
from more.plan.live_bytes import LiveBytes
from more.train.cams import CamMaker
from more.train.stage_one import in_float32

OURS, COMPILED = "this step", "this step, blocks compiled"
AGREE = 2e-4  # largest relative difference of a term, as in the parity tests


def bench_step(config: Config, *, images: int = 0, rounds: int = 3,
               other: OtherStep | None = None, backend: str = "",
               device: torch.device | None = None
               ) -> tuple[list[Row], dict[str, Any], dict[str, dict[str, float]]]:
    """Measure steps in turn.

    Args:
        config: from `bench_settings`.
        images: of the batch; 0 takes `train.global_batch`.
        rounds: steps of each kind that count; one more comes first.
        other: what to compare with; None compares with nothing.
        backend: of torch.compile for the blocks; "" leaves it out.

    Returns:
        The table's lines, facts about the run, and seconds by part of each step.

    Raises:
        RuntimeError: the steps are not the same training.
        UserError: the other step does not know an option.
    """
    device, images = device or torch.device("cpu"), images or config.train.global_batch
    steps, about = _make_steps(config, images, other, backend, device)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    # A busy host gives now more, now less: products are measured in every round, as the steps are.
    parts, peaks = time_parts(steps, rounds, device, lambda: gemm_peak(device, dtype))
    seconds = {name: sum(part.values()) for name, part in parts.items()}
    about |= machine_use(config, images, seconds[OURS], median(peaks))
    for name, step in steps.items():
        if name != COMPILED:
            about[f"MB at most, {name}"] = peak_bytes(step, device) / 1e6
    about["MB predicted"] = step_activations(config, images).peak / 1e6
    about["labels that bf16 views leave as they are"] = label_agreement(steps[OURS])
    against = {OURS: other.name} if other else {}
    if backend:
        against[COMPILED] = OURS
    return rows(seconds, against), about, parts


def _make_steps(config: Config, images: int, other: OtherStep | None, backend: str,
                device: torch.device) -> tuple[dict[str, OwnStep], dict[str, Any]]:
    """The steps by name, and what was found out while they were made."""
    network = make_network(config).to(device).train()
    example = drawn_example(config, images, network.encoder.patch_size, device)
    steps, about = {OURS: OwnStep(config, network, example)}, {}
    if other:
        steps[other.name] = other.make(config, copy.deepcopy(network), example)
        about["difference of terms"] = compare_terms(steps[OURS], steps[other.name])
    if backend:
        compiled = copy.deepcopy(network)
        compiled.encoder.compile_blocks(backend)
        steps[COMPILED] = OwnStep(config, compiled, example)
        started = time.perf_counter()
        steps[COMPILED]()
        about["s to compile"] = time.perf_counter() - started
    return steps, about


def time_parts(steps: Mapping[str, OwnStep], rounds: int, device: torch.device,
               peak: Callable[[], float]) -> tuple[dict[str, dict[str, float]], list[float]]:
    """Median seconds by part of each step, and what `peak` returns in each round.

    Every round runs all of them in turn; one more comes first and does not count.
    """
    seen: dict[str, list[dict[str, float]]] = defaultdict(list)
    peaks: list[float] = []
    for number in range(rounds + 1):
        for name, step in steps.items():
            watch = Stopwatch(device)
            step(watch.mark)
            if number:
                seen[name].append(watch.seconds)
        if number:
            peaks.append(peak())
    return {name: {part: median(one.get(part, 0.0) for one in all_) for part in PARTS}
            for name, all_ in seen.items()}, peaks


def compare_terms(own: OwnStep, other: OwnStep) -> float:
    """Largest relative difference of a term.

    Raises:
        RuntimeError: larger than the parity tests allow.
    """
    ours, theirs = own.terms(), other.terms()
    worst = max(abs(float(ours[name].detach()) - float(value.detach()))
                / max(abs(float(value.detach())), 1e-6) for name, value in theirs.items())
    if not worst <= AGREE:
        raise RuntimeError(f"the terms differ by {worst:.2g}: {ours}, {theirs}")
    return worst


def machine_use(config: Config, images: int, seconds: float, peak: float) -> dict[str, float]:
    """Operations of a step, the machine's best matrix products, and how much of them is used."""
    counted = sum(step_flops(config, images).values())
    return {"GFLOP a step": counted / 1e9, "GFLOP/s of matrix products": peak / 1e9,
            "utilisation": counted / seconds / peak}


def peak_bytes(step: OwnStep, device: torch.device) -> int:
    """Most bytes of tensors during a step, weights and optimiser state aside.

    On a GPU its allocator tells, with what operations need inside themselves.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        step()
    return live.peak


def label_agreement(step: OwnStep) -> float:
    """Share of patches whose label is the same with CAM views in bf16 (main and auxiliary)."""
    data, found = step.example, []
    with torch.no_grad():
        output = in_float32(step._forward(data.images))
        for precision in ("model", "bf16"):
            config = replace(step.config, cam=replace(step.config.cam, precision=precision))
            cams = CamMaker(config, step._forward, step.objective,
                            step.network.encoder.patch_size)(data.images, data.tags, output, 0)
            grid = output.patch_tokens.shape[-2:]
            found.append(torch.cat([cam_to_label(resize(maps, grid), data.tags, config.cam.high,
                                                 config.cam.low) for maps in cams]))
    return float((found[0] == found[1]).float().mean())
