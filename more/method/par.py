"""PAR: pixel-adaptive refinement of masks by the colours of neighbouring pixels (method §4.5).

B batch, K masks of an image, H×W pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# Bytes of the colours of all neighbours at a time: they stay in a core's cache; a GPU, which starts
# every operation anew, wants few large ones.
BAND = {"cpu": 2**20, "cuda": 2**28}


class PixelAdaptiveRefinement:
    """Replaces masks again and again by a weighted sum over neighbours of similar colour.

    The weights of a pixel sum to 1.01 (colour softmax plus 0.01 times position softmax), so the
    total mass grows by 1 % an iteration, as in the released code.

    Args:
        dilations: distances of the 8 neighbours; all of them are used together.
        iterations: how often the masks are replaced.
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

        Args:
            images: `[B, 3, H, W]` in 0..1.
            masks: `[B, K, h, w]`, resized to the images with aligned corners where sizes differ.

        Returns:
            Masks `[B, K, H, W]`.
        """
        if masks.shape[-2:] != images.shape[-2:]:
            size = tuple(images.shape[-2:])
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=True)
        batch, channels, height, width = masks.shape
        weights = self.weights(images).permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        size = (self.dilations, height, width)
        if images.is_cuda:
            spread = _bags_sum(weights, *_entries(_places(*size, images.device), batch))
        else:
            spread = _rows_sum(weights, *_entries_on_cpu(*size, batch))
        x = masks.permute(0, 2, 3, 1).reshape(len(weights), channels)
        for _ in range(self.iterations):
            x = spread(x)
        return x.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def weights(self, images: Tensor) -> Tensor:
        """Weights of all neighbours, `[B, 8·dilations, H, W]`, from images `[B, 3, H, W]`.

        They depend on the images alone. A pixel's weights lie side by side in memory.
        """
        position = _position_weights(self.dilations, self.colour_width, images.dtype,
                                     images.device, self.position_weight)
        made = self._weights_by_places if images.is_cuda else self._weights_by_rows
        return made(images, position).permute(0, 3, 1, 2)

    def _weights_by_rows(self, images: Tensor, position: Tensor) -> Tensor:
        """`[B, H, W, 8·dilations]`, some rows at a time and in one place: for a CPU's cache."""
        batch, channels, height, width = images.shape
        number = len(self.dilations) * len(OFFSETS)
        padded = F.pad(images, (self.margin,) * 4, mode="replicate")
        weights = images.new_empty(batch, height, width, number)
        step = max(1, BAND["cpu"] // (number * batch * channels * width * images.element_size()))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            near = self._neighbours(padded, rows, width)
            centred = near - near.mean(dim=0)
            variance = centred.square_().sum(dim=0).div_(number - 1)
            scale = variance.sqrt_().add_(1e-8).mul_(self.colour_width).reciprocal_()
            colour = near.sub_(images[:, :, rows]).mul_(scale).square_().mean(dim=2).neg_()
            weights[:, rows] = colour.permute(1, 2, 3, 0).contiguous().softmax(-1).add_(position)
        return weights

    def _weights_by_places(self, images: Tensor, position: Tensor) -> Tensor:
        """`[B, H, W, 8·dilations]`, one gather and few operations: for a GPU."""
        batch, channels, height, width = images.shape
        places = _places(self.dilations, height, width, images.device)
        colours, (pixels, number) = images.flatten(2), places.shape
        weights = images.new_empty(batch, pixels, number)
        step = max(1, BAND["cuda"] // (number * batch * channels * images.element_size()))
        for start in range(0, pixels, step):
            band = slice(start, min(start + step, pixels))
            near = colours.index_select(2, places[band].flatten()).unflatten(2, (-1, number))
            scale = near.std(dim=-1, keepdim=True).add_(1e-8).mul_(self.colour_width)
            colour = near.sub_(colours[:, :, band, None]).div_(scale).square_().mean(dim=1).neg_()
            torch.add(colour.softmax(-1), position, out=weights[:, band])
        return weights.unflatten(1, (height, width))

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


# What depends on sizes alone is kept; in inference mode it would refuse passes with gradient later.
@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)
def _position_weights(dilations: tuple[int, ...], width: float, dtype: torch.dtype,
                      device: torch.device, share: float) -> Tensor:
    """What neighbours get for their distance, `[8·dilations]`: `share` in all; to be read only."""
    distances = torch.tensor([d * math.hypot(*offset) for d in dilations for offset in OFFSETS],
                             dtype=dtype)
    scaled = distances / (distances.std() + 1e-8) / width
    return ((-scaled.square()).softmax(dim=0) * share).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)
def _places(dilations: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Where an image's neighbours are, int32 `[H·W, 8·dilations]`: clamped; to be read only."""
    rows, columns = torch.arange(height), torch.arange(width)
    shifts = [(d * dy, d * dx) for d in dilations for dy, dx in OFFSETS]
    y = torch.stack([(rows + dy).clamp(0, height - 1) for dy, _ in shifts], dim=-1)
    x = torch.stack([(columns + dx).clamp(0, width - 1) for _, dx in shifts], dim=-1)
    return (y[:, None] * width + x).flatten(0, 1).to(torch.int32).to(device)


def _entries(places: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Of the sparse matrix of all images, one row per pixel: bounds of rows, columns of entries."""
    pixels, number = places.shape
    kind = torch.int32 if batch * places.numel() < 2**31 else torch.int64
    like = {"dtype": kind, "device": places.device}
    bounds = torch.arange(0, batch * places.numel() + 1, number, **like)
    if batch == 1:
        return bounds, places.flatten().to(kind)
    first = torch.arange(0, batch * pixels, pixels, **like)
    return bounds, (places + first[:, None, None]).flatten()


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _entries_on_cpu(dilations: tuple[int, ...], height: int, width: int, batch: int
                    ) -> tuple[Tensor, Tensor]:
    """`_entries`, kept where memory is plenty; a GPU makes them anew with each call, in no time."""
    return _entries(_places(dilations, height, width, torch.device("cpu")), batch)


def _rows_sum(weights: Tensor, bounds: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """The operator whose row r adds what stands at `places` of that row times its weights."""
    with warnings.catch_warnings():  # on first use: CSR support is in beta, its checks are off
        warnings.filterwarnings("ignore", message=".*[Ss]parse (CSR|invariant).*")
        matrix = torch.sparse_csr_tensor(bounds, places, weights.flatten(), (len(weights),) * 2,
                                         check_invariants=False)
    return matrix.matmul


def _bags_sum(weights: Tensor, bounds: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """`_rows_sum` for a GPU, in one launch that keeps nothing of what it gathers.

    The GPU's sparse library does not fix the order in which a sum is made; a bag is always added up
    from its first entry to its last.
    """
    flat = weights.flatten()
    return lambda x: F.embedding_bag(places, x, bounds, mode="sum", per_sample_weights=flat,
                                     include_last_offset=True)
