"""How the seed of one image becomes its mask: the settings, and the work itself.

Several images go together where the CRF's engine gains by it. Imports no torch, so that a worker
stays small and starts fast.

Letters of shapes: H, W are the sides of the image; K counts the labels of a seed, background
included.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from more.data.seeds import SeedItem, seed_probabilities
from more.data.shards.format import IGNORE
from more.errors import UserError
from more.filtering import crf
from more.filtering.parameters import CRFParams
from more.refinement.worker_memory import check_image

RELEASED_THRESHOLD = 0.5


@dataclass(frozen=True)
class Refinement:
    """Settings of `more refine`; the defaults are the released ones.

    Attributes:
        params: the dense CRF.
        engine: "auto", "fast", "pydensecrf", "lattice" or "exact".
        ignore_below: pixels whose confidence is lower become 255; None keeps all.
        threshold: value of a class map at which class and background are equally likely before
            the CRF, see `more.data.seeds.seed_probabilities`; seeds with a background of their
            own take the default only. "auto" is chosen by `more.refinement.threshold`.
        chosen: how the threshold was chosen, where it was not given.
        ignore_disagreement: pixels whose label the CRF changed become 255.
        max_pixels: larger images are refined at a reduced size, and their labels brought back by
            nearest neighbour; the CRF's deviations then count in pixels of the reduced image. 0
            refines all as they are.

    Raises:
        UserError: a value out of its range.
    """

    params: CRFParams = field(default_factory=CRFParams)
    engine: str = "auto"
    ignore_below: float | None = None
    threshold: float | str = RELEASED_THRESHOLD
    ignore_disagreement: bool = False
    chosen: str = ""
    max_pixels: int = 0

    def __post_init__(self) -> None:
        if self.ignore_below is not None and not 0 <= self.ignore_below <= 1:
            raise UserError(f"ignore_below is {self.ignore_below}",
                            fix="give a confidence from 0 to 1")
        if self.max_pixels < 0:
            raise UserError(f"max_pixels is {self.max_pixels}", fix="give a number of pixels")
        if self.threshold != "auto" and not 0 < self.threshold < 1:  # also true for NaN
            raise UserError(f"threshold is {self.threshold}",
                            fix="give a value between 0 and 1, without the two")

    def record(self) -> dict[str, Any]:
        """What the provenance of a set of masks says about it."""
        return {"crf": asdict(self.params), "engine": self.engine,
                "ignore_below": self.ignore_below, "threshold": float(self.threshold),
                "ignore_disagreement": bool(self.ignore_disagreement),
                **({"threshold_chosen": self.chosen} if self.chosen else {}),
                **({"max_pixels": self.max_pixels} if self.max_pixels else {})}

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image of this size is refined."""
        if not self.max_pixels or height * width <= self.max_pixels:
            return height, width
        factor = (self.max_pixels / (height * width)) ** 0.5
        return max(1, int(height * factor)), max(1, int(width * factor))

    def check_seeds(self, kind: str | None) -> None:
        """Refuse, before any work, seeds whose maps the threshold says nothing about.

        Args:
            kind: what the seeds were made of: "cam", "lam", "fused", "decoder"; None: unknown.

        Raises:
            UserError: decoder seeds with another threshold than the default.
        """
        if kind == "decoder" and self.threshold != RELEASED_THRESHOLD:
            raise UserError(f"threshold is {self.threshold}, but decoder seeds have a background "
                            "of their own", fix="leave the threshold out")


def refine_item(image: np.ndarray, item: SeedItem,
                how: Refinement) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of one image (method §4.12).

    Args:
        image: [H, W, 3] uint8 RGB.
        item: its seed.
        how: the CRF, its engine, and what becomes 255.

    Returns:
        label uint8 [H, W]: 0, a class of the seed, or 255; confidence uint8 [H, W]: round(255 Q)
        of the best label. Without classes everything is background with confidence 255.
    """
    return refine_items([image], [item], how)[0]


def refine_items(images: list[np.ndarray], items: list[SeedItem], how: Refinement,
                 device: str = "cpu") -> list[tuple[np.ndarray, np.ndarray]]:
    """`refine_item` of several images at once.

    Args:
        images: of one size.
        items: their seeds, with equally many labels.
        how: as for `refine_item`.
        device: where the CRF runs.

    Returns:
        Label and confidence of each.
    """
    full = images[0].shape[:2]
    size = how.size(*full)
    if size != full:
        images = [cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in images]
        return [tuple(cv2.resize(part, full[::-1], interpolation=cv2.INTER_NEAREST)
                      for part in made)
                for made in refine_items(images, items, replace(how, max_pixels=0), device)]
    seeds = [seed_probabilities(item, full, how.threshold) for item in items]
    if len(seeds[0][0]) == 1:
        return [(np.zeros(full, np.uint8), np.full(full, 255, np.uint8)) for _ in images]
    probs = [maps for _, maps in seeds]
    if len(images) == 1 and device == "cpu":
        marginals = [refine_maps(images[0], probs[0], how)]
    else:
        if device == "cpu":
            check_image(crf.resolve_engine(how.engine), full[0] * full[1], len(seeds[0][0]))
        marginals = crf.refine_batch(images, probs, how.params, how.engine, device)
    return [label_map(keys, maps, q, how) for (keys, maps), q in zip(seeds, marginals, strict=True)]


def refine_maps(image: np.ndarray, maps: np.ndarray, how: Refinement) -> np.ndarray:
    """Marginals of the dense CRF of one image, on the CPU, if the memory holds it.

    Args:
        image: [H, W, 3] uint8 RGB.
        maps: [K, H, W] float32 probabilities. One label alone has nothing to be told apart from.
        how: the CRF's parameters and engine.

    Returns:
        [K, H, W] float32.

    Raises:
        UserError: the image is too large for the memory.
    """
    if len(maps) == 1:
        return np.ones_like(maps)
    check_image(crf.resolve_engine(how.engine), maps[0].size, len(maps))
    return crf.refine(image, maps, how.params, how.engine)


def label_map(keys: np.ndarray, probs: np.ndarray, q: np.ndarray,
              how: Refinement) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence from what went into the CRF and what came out.

    Args:
        keys: [K] pixel values of the labels.
        probs: [K, H, W] before the CRF.
        q: [K, H, W] marginals.
        how: what becomes 255.

    Returns:
        As `refine_item`.
    """
    after = q.argmax(0)
    best = np.take_along_axis(q, after[None], 0)[0]  # max(0) is slow in pydensecrf's layout
    label = keys[after].astype(np.uint8)
    if how.ignore_below is not None:
        label[best < how.ignore_below] = IGNORE
    if how.ignore_disagreement:
        label[after != probs.argmax(0)] = IGNORE
    return label, np.rint(best.clip(0, 1) * 255).astype(np.uint8)
