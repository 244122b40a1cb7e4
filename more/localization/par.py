"""PAR: pixel-adaptive refinement of masks by the colours of neighbouring pixels (§4.5)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# Bytes of the colours of all neighbours at a time: they stay in a core's cache; a GPU wants more.
BAND = {"cpu": 2**20, "cuda": 2**28}


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
        self.gain = (1 + self.position_weight) ** self.iterations
        """Factor of a pixel's sum over masks where that sum is the same everywhere."""

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
        if images.is_cuda:
            return self._by_shifts(masks, weights.contiguous())
        return self._by_rows(masks, weights)

    @torch.no_grad()
    def weights(self, images: Tensor) -> Tensor:
        """Weights of all neighbours, `[B, 8·dilations, H, W]`, from images `[B, 3, H, W]`.

        They depend on the images alone. Some rows are made at a time, in one place, and a pixel's
        weights lie side by side in memory.
        """
        batch, channels, height, width = images.shape
        number = len(self.dilations) * len(OFFSETS)
        position = self._position_weights(images) * self.position_weight
        padded = F.pad(images, (self.margin,) * 4, mode="replicate")
        weights = images.new_empty(batch, height, width, number)
        row = number * batch * channels * width * images.element_size()
        step = max(1, BAND.get(images.device.type, BAND["cuda"]) // row)
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            near = self._neighbours(padded, rows, width)
            centred = near - near.mean(dim=0)
            variance = centred.square_().sum(dim=0).div_(number - 1)
            scale = variance.sqrt_().add_(1e-8).mul_(self.colour_width).reciprocal_()
            colour = near.sub_(images[:, :, rows]).mul_(scale).square_().mean(dim=2).neg_()
            weights[:, rows] = colour.permute(1, 2, 3, 0).contiguous().softmax(-1).add_(position)
        return weights.permute(0, 3, 1, 2)

    def _position_weights(self, like: Tensor) -> Tensor:
        distances = torch.tensor(
            [d * math.hypot(*offset) for d in self.dilations for offset in OFFSETS],
            dtype=like.dtype,
            device=like.device,
        )
        scaled = distances / (distances.std() + 1e-8) / self.colour_width
        return (-scaled.square()).softmax(dim=0)

    def _neighbours(self, padded: Tensor, rows: slice, width: int) -> Tensor:
        """Colours `[8·dilations, B, 3, rows, W]` around some rows, from the padded images."""
        batch, channels = padded.shape[:2]
        size = (3, 3, batch, channels, rows.stop - rows.start, width)
        near = padded.new_empty(len(self.dilations), len(OFFSETS), *size[2:])
        line, strides = padded.stride(2), padded.stride()
        for place, d in zip(near, self.dilations, strict=True):
            corner = (rows.start + self.margin - d) * line + self.margin - d
            square = padded.as_strided(size, (d * line, d, *strides), corner)
            place[:3], place[3:5], place[5:] = square[0], square[1, ::2], square[2]
        return near.flatten(0, 1)

    def _by_rows(self, masks: Tensor, weights: Tensor) -> Tensor:
        """All iterations as products with one sparse matrix, one row per pixel."""
        batch, channels, height, width = masks.shape
        rows = weights.permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        spread = _rows_sum(rows, *_places(self.dilations, batch, height, width))
        x = masks.permute(0, 2, 3, 1).reshape(len(rows), channels)
        for _ in range(self.iterations):
            x = spread(x)
        return x.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()

    def _by_shifts(self, masks: Tensor, weights: Tensor) -> Tensor:
        """All iterations as sums of shifted copies: no order of summation is left to a library."""
        height, width = masks.shape[-2:]
        corners = [(self.margin + d * dy, self.margin + d * dx)
                   for d in self.dilations for dy, dx in OFFSETS]
        for _ in range(self.iterations):
            padded = F.pad(masks, (self.margin,) * 4, mode="replicate")
            masks = torch.zeros_like(masks)
            for (y, x), weight in zip(corners, weights.unbind(1), strict=True):
                masks.addcmul_(padded[..., y : y + height, x : x + width], weight[:, None])
        return masks


@lru_cache(maxsize=8)
def _places(dilations: tuple[int, ...], batch: int, height: int,
            width: int) -> tuple[Tensor, Tensor]:
    """Bounds of the sparse matrix's rows and columns of its entries: clamped places."""
    rows, columns = torch.arange(height), torch.arange(width)
    shifts = [(d * dy, d * dx) for d in dilations for dy, dx in OFFSETS]
    y = torch.stack([(rows + dy).clamp(0, height - 1) for dy, _ in shifts], dim=-1)
    x = torch.stack([(columns + dx).clamp(0, width - 1) for _, dx in shifts], dim=-1)
    image = torch.arange(batch)[:, None, None, None] * height * width
    places = image + y[:, None] * width + x
    bounds = torch.arange(batch * height * width + 1) * len(shifts)
    kind = torch.int32 if places.numel() < 2**31 else torch.int64
    return bounds.to(kind), places.flatten().to(kind)


def _rows_sum(weights: Tensor, bounds: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """The operator whose row r adds what stands at `places` of that row times its weights."""
    with warnings.catch_warnings():  # on first use: CSR support is in beta, its checks are off
        warnings.filterwarnings("ignore", message=".*[Ss]parse (CSR|invariant).*")
        matrix = torch.sparse_csr_tensor(bounds, places, weights.flatten(), (len(weights),) * 2,
                                         check_invariants=False)
    return matrix.matmul
