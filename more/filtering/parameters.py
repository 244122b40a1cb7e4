"""Parameters of the dense CRF, the names of its engines, and their limits.

This module imports neither torch nor numpy, so that settings can be checked without them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from more.errors import UserError

ENGINES = ("fast", "pydensecrf", "lattice", "exact")
CPU_ONLY = ("fast", "pydensecrf")
FINEST = 0.1
"""Smallest standard deviation in pixels or grey levels. At 0.1 two neighbouring pixels, or two
neighbouring grey levels, have a kernel of exp(-50): smaller ones change nothing. But their lattice
cells have numbers that overflow: pydensecrf crashes from 3e-5 on, the own engines refuse
images at 0.01."""


@dataclass(frozen=True)
class CRFParams:
    """Dense CRF of the released method (method §4.12).

    Args:
        iterations: mean-field steps.
        gaussian_xy: standard deviation of the place kernel in pixels.
        gaussian_compat: Potts weight of the place kernel.
        bilateral_xy: standard deviation of the bilateral kernel in pixels.
        bilateral_rgb: standard deviation of the bilateral kernel in grey levels.
        bilateral_compat: Potts weight of the bilateral kernel.

    Raises:
        UserError: a value is not finite, negative, or a standard deviation is below `FINEST`.
    """

    iterations: int = 10
    gaussian_xy: float = 1.0
    gaussian_compat: float = 3.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0
    bilateral_compat: float = 4.0

    def __post_init__(self) -> None:
        if int(self.iterations) != self.iterations:
            raise UserError(f"crf.iterations is {self.iterations}", fix="give a whole number")
        for field in dataclasses.fields(self):
            value = float(getattr(self, field.name))
            spread = not field.name.endswith(("compat", "iterations"))
            if not math.isfinite(value) or value < (FINEST if spread else 0):
                unit = "grey levels" if field.name.endswith("rgb") else "pixels"
                raise UserError(f"crf.{field.name} is {value}",
                                fix=f"give at least {FINEST} {unit}; finer, no two of them are "
                                    "alike anyway" if spread else "give 0 or more")
            # 67 and 67.0 are the same parameters and must have the same record.
            object.__setattr__(self, field.name,
                               int(value) if field.name == "iterations" else value)
