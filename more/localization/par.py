"""PAR: pixel-adaptive refinement of masks by the colours of neighbouring pixels (§4.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


class PixelAdaptiveRefinement:
    """Replaces masks again and again by a weighted sum over neighbours of similar colour.

    Args:
        dilations: distances of the 8 neighbours; all of them are used together.
        iterations: how often the masks are replaced.

    The weights of a pixel sum to 1.01 (colour softmax plus 0.01 times position softmax), so the
    total mass grows by 1 % an iteration, as in the released code.
    """

    colour_width = 0.3
    position_weight = 0.01

    def __init__(
        self, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), iterations: int = 10
    ) -> None:
        if not dilations or min(dilations) < 1:
            raise ValueError(f"PAR needs dilations of at least 1, got {tuple(dilations)}")
        self.dilations = tuple(int(d) for d in dilations)
        self.iterations = int(iterations)
        self.margin = max(self.dilations)

    @torch.no_grad()
    def __call__(self, images: Tensor, masks: Tensor) -> Tensor:
        """Refine masks.

        Args: images `[B, 3, H, W]` in 0..1; masks `[B, K, h, w]`, resized to the images with
        aligned corners where sizes differ. Returns: `[B, K, H, W]`.
        """
        if masks.shape[-2:] != images.shape[-2:]:
            size = tuple(images.shape[-2:])
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=True)
        weights = self.weights(images)
        for _ in range(self.iterations):
            masks = self._propagate(masks, weights)
        return masks

    @torch.no_grad()
    def weights(self, images: Tensor) -> Tensor:
        """Weights of all neighbours, `[B, 8·dilations, H, W]`, from images `[B, 3, H, W]`.

        They depend on the images alone. One neighbour at a time is held against the centre, so
        the largest tensor is the result.
        """
        near = self._neighbours(images)
        mean = sum(near) / len(near)
        variance = sum((n - mean).square_() for n in near) / (len(near) - 1)
        scale = (variance.sqrt_().add_(1e-8).mul_(self.colour_width)).reciprocal_()
        batch, _, height, width = images.shape
        colour = images.new_empty(batch, len(near), height, width)
        for place, n in enumerate(near):
            colour[:, place] = (n - images).mul_(scale).square_().mean(dim=1).neg_()
        position = self._position_weights(images)
        return colour.softmax(dim=1).add_(position[:, None, None], alpha=self.position_weight)

    def _position_weights(self, like: Tensor) -> Tensor:
        distances = torch.tensor(
            [d * math.hypot(*offset) for d in self.dilations for offset in OFFSETS],
            dtype=like.dtype,
            device=like.device,
        )
        scaled = distances / (distances.std() + 1e-8) / self.colour_width
        return (-scaled.square()).softmax(dim=0)

    def _neighbours(self, x: Tensor) -> list[Tensor]:
        """Views `[B, K, H, W]` of `x` shifted to every neighbour, edges replicated."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (self.margin,) * 4, mode="replicate")
        corners = [
            (self.margin + d * dy, self.margin + d * dx)
            for d in self.dilations
            for dy, dx in OFFSETS
        ]
        return [padded[..., y : y + height, x0 : x0 + width] for y, x0 in corners]

    def _propagate(self, masks: Tensor, weights: Tensor) -> Tensor:
        new = torch.zeros_like(masks)
        for neighbour, weight in zip(self._neighbours(masks), weights.unbind(1), strict=True):
            new.addcmul_(neighbour, weight[:, None])
        return new
