"""How seeds become masks: everything that decides the content of a mask, and nothing else.

Imports no torch: CRF workers read it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from more.errors import UserError
from more.filtering.parameters import CRFParams

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
            own take the default only. "auto" is chosen by `more.refine.threshold`.
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
