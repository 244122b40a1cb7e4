"""The training step that `more bench train` measures, on one drawn batch, part by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from more.config.schema import Config
from more.method.labels import Batch
from more.method.network import MoReNetwork
from more.method.objective import make_objective
from more.train.cams import CamMaker
from more.train.engine import make_optimizer
from more.train.stage_one import in_float32

PARTS = ("CAM", "forward", "labels", "losses", "backward", "optimiser")
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


def _booked(method: Any, objective: Any, mark: Mark) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        """Call the method between two marks."""
        mark("losses")
        result = method(objective, *args, **options)
        mark("labels")
        return result
    return run


@dataclass(frozen=True)
class OtherStep:
    """Another step that must compute the same.

    Attributes:
        name: in the table.
        make: the step, from settings, a copy of the network, and the batch.
    """

    name: str
    make: Callable[[Config, MoReNetwork, Example], OwnStep]
