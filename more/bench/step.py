"""A whole training step by part, against a straightforward one, and against the machine.

Both steps share weights, batch, random choices and optimiser; their terms are compared before
anything is timed.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from more.bench.flops import gemm_peak, step_flops
from more.bench.measure import Row, rows
from more.config.schema import Config
from more.engine.activations import step_activations
from more.engine.build import make_network, make_objective, make_optimizer
from more.engine.cams import CamMaker
from more.engine.livebytes import LiveBytes
from more.engine.trainer import in_float32
from more.errors import UserError
from more.localization.maps import resize
from more.localization.regions import cam_to_label
from more.losses.objective import Batch
from more.model.network import MoReNetwork

PARTS = ("CAM", "forward", "labels", "losses", "backward", "optimiser")
OURS, COMPILED = "this step", "this step, blocks compiled"
# Not the released code's own time: it filters with compiled C++, the oracle with a dictionary.
RESEARCH = {"research": "straightforward step", "positions": "straightforward step, by position"}
AGREE = 2e-4  # largest relative difference of a term, as in the parity tests
Mark = Callable[[str], None]


class Stopwatch:
    """Seconds by part: `mark(name)` books the time since the last mark."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict(float)
        self.last = self._now()

    def mark(self, name: str) -> None:
        """A part is done; one that comes again is added up."""
        now = self._now()
        self.seconds[name] += now - self.last
        self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Example:
    """One batch for all steps: images `[B,3,H,W]`, tags `[B,C]`, URE's numbers `[B,2,h·w]`."""

    images: Tensor
    tags: Tensor
    keys: Tensor


def drawn_example(config: Config, images: int, patch: int, device: torch.device) -> Example:
    """Soft coloured noise with one or two classes an image.

    Values lie between two 8-bit levels, so that truncation to them cannot differ.
    """
    generator, crop = torch.Generator().manual_seed(0), config.data.crop
    coarse = torch.rand(images, 3, max(crop // 8, 1), max(crop // 8, 1), generator=generator)
    pixels = (F.interpolate(coarse, size=crop, mode="bicubic").clamp(0, 1) * 254).floor() + 0.5
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.data.mean, config.data.std))
    tags = torch.zeros(images, config.model.num_classes)
    for row in range(images):
        for k in range(1 + row % 2):
            tags[row, (3 * row + k) % tags.shape[1]] = 1
    keys = torch.rand(images, 2, (crop // patch) ** 2, generator=generator)
    return Example(*(t.to(device) for t in ((pixels - mean) / std, tags, keys)))


class OwnStep:
    """This project's step on one batch, over and over.

    Args:
        config: settings; every term counts.
        network: trained in place.
        example: the batch.
    """

    def __init__(self, config: Config, network: MoReNetwork, example: Example):
        self.config, self.network, self.example = config, network, example
        self.objective = make_objective(config)
        self.cams = CamMaker(config, self._forward, self.objective, network.encoder.patch_size)
        self.optimizer = make_optimizer(config, network)

    def _forward(self, images: Tensor, mode: str = "train", half: bool = False) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16,
                            enabled=self.config.precision == "bf16"):
            return self.network(images, mode=mode, half=half)

    def terms(self, mark: Mark = lambda name: None) -> dict[str, Tensor]:
        """Forward, CAMs and losses."""
        data, objective = self.example, self.objective
        output = in_float32(self._forward(data.images))
        mark("forward")
        cams, aux_cams = self.cams(data.images, data.tags, output, 0)
        mark("CAM")
        for name in ("masks", "pseudo_label"):  # they are made inside the objective
            setattr(objective, name, _booked(getattr(type(objective), name), objective, mark))
        terms = objective(output, Batch(
            images=data.images, tags=data.tags, cams=cams, aux_cams=aux_cams, keys=data.keys,
            mean=self.config.data.mean, std=self.config.data.std), 0)
        mark("losses")
        return terms

    def __call__(self, mark: Mark = lambda name: None) -> None:
        """One update."""
        self.terms(mark)["total"].backward()
        mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark("optimiser")


class ResearchStep(OwnStep):
    """The same update by `tests/oracles/step.py`; with PyTorch's own loop over parameters.

    Args:
        by_position: losses of pairs and pixels one after another.
    """

    def __init__(self, config: Config, network: MoReNetwork, example: Example, by_position: bool):
        super().__init__(config, network, example)
        self.by_position, self.oracle = by_position, _oracle()
        for group in self.optimizer.param_groups:
            group["fused"], group["foreach"] = None, None

    def terms(self, mark: Mark = lambda name: None) -> dict[str, Tensor]:
        """All terms and their sum."""
        data = self.example
        return self.oracle.training_terms(
            self.network, data.images, data.tags, self.objective.recipe, self.config.cam.scales,
            data.keys, mark, self.by_position)


def _booked(method: Any, objective: Any, mark: Mark) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        mark("losses")
        result = method(objective, *args, **options)
        mark("labels")
        return result
    return run


def _oracle() -> Any:
    try:
        return importlib.import_module("tests.oracles.step")
    except ModuleNotFoundError as error:
        raise UserError(f"the step of research code is part of the tests ({error})",
                        "run in the project's folder, where tests/ lies") from error


def bench_step(config: Config, *, images: int = 0, rounds: int = 3, oracle: str = "",
               backend: str = "", device: torch.device | None = None
               ) -> tuple[list[Row], dict[str, Any], dict[str, dict[str, float]]]:
    """Measure steps in turn.

    Args:
        config: from `bench_settings`.
        images: of the batch; 0 takes `train.global_batch`.
        rounds: steps of each kind that count; one more comes first.
        oracle: "", "research" or "positions": what to compare with.
        backend: of torch.compile for the blocks; "" leaves it out.

    Returns:
        The table's lines, facts about the run, and seconds by part of each step.

    Raises:
        RuntimeError: the steps are not the same training.
        UserError: the oracle is not there, or knows an option not.
    """
    device, images = device or torch.device("cpu"), images or config.train.global_batch
    network = make_network(config).to(device).train()
    example = drawn_example(config, images, network.encoder.patch_size, device)
    steps, about = {OURS: OwnStep(config, network, example)}, {}
    if oracle:
        _check_options(config)
        steps[RESEARCH[oracle]] = ResearchStep(config, copy.deepcopy(network), example,
                                               oracle == "positions")
        about["difference of terms"] = compare_terms(steps[OURS], steps[RESEARCH[oracle]])
    if backend:
        compiled = copy.deepcopy(network)
        compiled.encoder.compile_blocks(backend)
        steps[COMPILED] = OwnStep(config, compiled, example)
        started = time.perf_counter()
        steps[COMPILED]()
        about["s to compile"] = time.perf_counter() - started
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak = gemm_peak(device, dtype)
    parts = time_parts(steps, rounds, device)
    peak = max(peak, gemm_peak(device, dtype))  # a busy host gives now more, now less
    seconds = {name: sum(part.values()) for name, part in parts.items()}
    about |= machine_use(config, images, seconds[OURS], peak)
    for name, step in steps.items():
        if name != COMPILED:
            about[f"MB at most, {name}"] = peak_bytes(step, device) / 1e6
    about["MB predicted"] = step_activations(config, images).peak / 1e6
    about["labels that bf16 views leave as they are"] = label_agreement(steps[OURS])
    against = {OURS: RESEARCH[oracle]} if oracle else {}
    if backend:
        against[COMPILED] = OURS
    return rows(seconds, against), about, parts


def time_parts(steps: Mapping[str, OwnStep], rounds: int, device: torch.device
               ) -> dict[str, dict[str, float]]:
    """Median seconds by part of each step; every round runs all of them in turn."""
    seen: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, step in steps.items():
            watch = Stopwatch(device)
            step(watch.mark)
            if number:
                seen[name].append(watch.seconds)
    return {name: {part: median(one.get(part, 0.0) for one in all_) for part in PARTS}
            for name, all_ in seen.items()}


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
    data, recipe, found = step.example, step.objective.recipe, []
    with torch.no_grad():
        output = in_float32(step._forward(data.images))
        for precision in ("model", "bf16"):
            config = replace(step.config, cam=replace(step.config.cam, precision=precision))
            cams = CamMaker(config, step._forward, step.objective,
                            step.network.encoder.patch_size)(data.images, data.tags, output, 0)
            grid = output.patch_tokens.shape[-2:]
            found.append(torch.cat([cam_to_label(resize(maps, grid), data.tags, recipe.high,
                                                 recipe.low) for maps in cams]))
    return float((found[0] == found[1]).float().mean())


def _check_options(config: Config) -> None:
    from more.config.schema import PAPER

    paper = [key for key, value in PAPER.items()
             if getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) == value]
    others = {"model.pooling": config.model.pooling == "max", "model.graph": config.model.graph,
              "model.token_attention": config.model.token_attention == "full",
              "loss.mcl_form": config.loss.mcl_form == "plain",
              "cam.late_after": config.cam.late_after >= 0,
              "precision": config.precision == "fp32",
              "cam.precision": config.cam.precision != "bf16",
              "cam.whole_patches": not config.cam.whole_patches}
    wrong = paper + [key for key, good in others.items() if not good]
    if wrong:
        raise UserError(f"the step of research code has released options only, not {wrong[0]}",
                        "measure a released recipe, or leave --oracle out")
