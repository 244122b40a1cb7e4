"""What refining a whole data set would take, from rates measured on a few images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from more.bench.measure import Line
from more.errors import UserError
from more.refinement.refine import ROWS_PER_SHARD


@dataclass(frozen=True)
class Project:
    """A data set in numbers.

    Attributes:
        name: what to call it.
        images: that have a class; others need no CRF.
        labels: mean number per image, background included.
        pixels: mean per image; None takes that of the measured ones.
        every: labels of the whole set, background included; None where unknown.
    """

    name: str
    images: int
    labels: float
    pixels: int | None = None
    every: int | None = None


KNOWN = {"voc": Project("voc", 10_582, 2.5, 375 * 500, 21),
         "coco": Project("coco", 82_081, 3.9, 480 * 640, 81)}


@dataclass(frozen=True)
class Measured:
    """What the projection starts from.

    Attributes:
        seconds: per image of one worker while all were at work.
        labels: mean per measured image.
        pixels: mean per measured image.
        curve: seconds by number of labels; only their ratios count.
        seed_bytes: of a seed per class.
        mask_bytes: of the masks set per image.
    """

    seconds: float
    labels: float
    pixels: float
    curve: Mapping[int, float]
    seed_bytes: float
    mask_bytes: float

    def growth(self, labels: float) -> float:
        """Time with so many labels over the time with as many as were measured."""
        known = sorted(self.curve)
        wanted, base = np.interp([labels, self.labels], known, [self.curve[k] for k in known])
        return float(wanted / base)


def read_project(text: str) -> Project:
    """`voc`, `coco`, or NAME:IMAGES:LABELS.

    Raises:
        UserError: neither, or numbers that are none.
    """
    if text in KNOWN:
        return KNOWN[text]
    name, *numbers = text.split(":")
    try:
        images, labels = int(numbers[0]), float(numbers[1])
        if len(numbers) == 2 and name and images > 0 and 2 <= labels <= 81:
            return Project(name, images, labels)
    except (IndexError, ValueError):
        pass
    raise UserError(f"--project {text}: not a data set",
                    fix=f"give {', '.join(KNOWN)} or NAME:IMAGES:LABELS, with 2 to 81 labels an "
                        "image, background included")


def read_cores(text: str) -> list[int]:
    """Numbers separated by commas.

    Raises:
        UserError: something else, or a number below 1.
    """
    try:
        cores = [int(part) for part in text.split(",")]
    except ValueError:
        cores = []
    if not cores or min(cores) < 1:
        raise UserError(f"--cores {text}: not numbers of cores", fix="give for example 16,64")
    return cores


def project(wanted: Project, measured: Measured, cores: list[int]) -> list[Line]:
    """Lines of one data set: with the labels that images show and, where known, with all.

    seconds per image = measured · growth(labels) · pixels / measured pixels
    core hours        = images · seconds per image / 3600
    hours on N cores  = ceil(shards / N) · images of a shard · seconds per image / 3600
    """
    scale = (wanted.pixels or measured.pixels) / measured.pixels
    seeds = wanted.images * measured.seed_bytes * (wanted.labels - 1)
    lines = []
    for kind, labels in (("shown", wanted.labels), ("all", wanted.every)):
        if labels is None:
            continue
        seconds = measured.seconds * measured.growth(labels) * scale
        line: Line = {"set": wanted.name, "images": wanted.images, "labels": labels, "run": kind,
                      "s per image": seconds, "core hours": wanted.images * seconds / 3600}
        for count in cores:
            line[f"hours on {count}"] = _busiest(wanted.images, count) * seconds / 3600
        lines.append(line | {"GB of seeds": seeds / 1e9,
                             "GB of masks": wanted.images * measured.mask_bytes * scale / 1e9})
    return lines


def _busiest(images: int, cores: int) -> int:
    """Images of the core that has most to do, when shards are not divided."""
    turns = math.ceil(math.ceil(images / ROWS_PER_SHARD) / cores)
    return min(images, turns * ROWS_PER_SHARD)


def assumptions(measured: Measured, workers: int) -> list[str]:
    """Sentences that go with the lines."""
    return [
        f"Projection, engine fast: {measured.seconds:.3g} s per image of one worker, measured with "
        f"{workers} at work on images of {measured.pixels:.0f} pixels and {measured.labels:.3g} "
        "labels; times "
        "time(labels) / time(measured labels) from the table of labels, linear between its "
        "numbers; times pixels / measured pixels. pydensecrf: by the difference in the table of "
        "engines more.",
        f"Assumed: cores like these, shards of {ROWS_PER_SHARD} images that are not divided, more "
        "workers share memory no worse than these did, textures like the measured ones. Start-up, "
        "reading from a slow disk and images without a class (no CRF) are left out.",
        "Sets: voc = train_aug, 375×500 pixels, 1.5 classes an image and background, of 21; coco = "
        "training images of 2014 that have a class, 480×640, 2.9 and background, of 81."]
