"""What the objective takes besides the network's output, and the labels that its terms learn from.

B batch, C classes, H×W pixels, h×w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from more.method.cam import Present, PresentMaps
from more.method.numerics import Reduce
from more.tensors import MEAN, STD


@dataclass
class Batch:
    """What the losses need besides the network's output."""

    images: Tensor
    """`[B, 3, H, W]` normalised, float32."""
    tags: Tensor
    """`[B, C]` zeros and ones."""
    cams: Tensor | PresentMaps | None
    """Multi-scale CAMs in 0..1, those of present classes or all `[B, C, H, W]`; None where
    `needs_cams` is false: the terms that are made from CAMs are then left out."""
    aux_cams: Tensor | PresentMaps | None
    """Likewise of the auxiliary classifier."""
    box: Tensor | None = None
    """`[B, 4]` (y0, y1, x0, x1) of the real image inside its padding, pixels."""
    keys: Tensor | None = None
    """`[B, 2, h·w]` uniform numbers for URE's choices; None: torch's default generator."""
    count_reduce: Reduce | None = None
    """Mean over ranks of a tensor of counts; None: one rank. Asked once a pass, for all terms."""
    share: float = 1.0
    """Part of the global batch in this one: 1 / (ranks × passes an update)."""
    mean: Sequence[float] = MEAN
    """Of the normalisation, scale 0..255."""
    std: Sequence[float] = STD
    """Of the normalisation, scale 0..255."""
    lams: Tensor | None = None
    """`[B, C, H, W]` LAMs in 0..1 for decoder labels from LAM; None: made from the output."""
    present: Present | None = None
    """What the tags say, where that is known; else terms find it out, and wait for a GPU."""

    @property
    def shown(self) -> Tensor | Present:
        """The tags, for what only asks which classes an image has."""
        return self.tags if self.present is None else self.present


class Labels(NamedTuple):
    """All that an update's terms learn from besides tags; made without gradient."""

    masks: Masks
    places: tuple[Tensor, Tensor] | None
    """URE's patches and which of them count, see `select_uncertain`."""
    pixels: Tensor | None
    """The decoder's labels `[B, H, W]`."""


class Masks(NamedTuple):
    """Labels of patches, each `[B, h, w]`."""

    contrast: Tensor
    confident: Tensor
    uncertain: Tensor
