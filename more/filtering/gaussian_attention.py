"""The exact Gaussian filter as one softmax attention: fast on a GPU, with no N × N matrix.

The logit of query q and key k is `q·k - ½|k|² - ½|q|² = -½|q - k|²`, in the form of a product of
`[q, 1, -½|q|²]` and `[k, -½|k|², 1]`. Softmax divides by the sum of the kernel; one more key of
zeros, whose kernel value is 1 to every pixel, brings that sum along and is divided out again.

In 16 bits the three parts must belong to the same vectors, or their differences are no squares any
more: features are centred and rounded first, and the squares are made of the rounded ones, in
float32 and as a sum of three 16-bit numbers.

Shape letters: B images, N pixels, M keys, K values (labels) per pixel, d feature dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from more.filtering.bilateral import bilateral_filter

LATTICE_GAIN = 0.58
"""Part of the true sum that the permutohedral lattice gives (0.53 to 0.61): the energy's released
weight relies on it."""
# The third backend would make the N × N matrix, and torch would choose it without a word.
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_TERMS = 3  # 16-bit numbers whose sum is a float32
_WIDEST = 128  # head dimension: values of more channels go through in turns


class AttentionGaussian:
    """Same interface as `ExactGaussian`; optionally only pixels on a grid act as keys.

    Args:
        features: [B, N, d] in units of the standard deviation. No gradient flows to them.
        size: (height, width) of the image whose pixels, row by row, the N are; needed for stride.
        stride: one key stands for about stride × stride pixels: it counts N / M times, where
            M = ceil(height / stride) · ceil(width / stride).
        amplitude: factor of the result.
        dtype: of the attention; default: float16 on CUDA, elsewhere that of the features.
        round_to: 16-bit type that numbers are rounded to before an attention of more precision;
            to see on a CPU what such a type does.

    Raises:
        ValueError: features are not [B, N, d], do not fit `size`, or, on a CPU, are not finite or
            too far from their mean for the squares to fit into the type. On a GPU, which would have
            to be waited for, what is filtered for such an image is NaN, and so is the loss.
    """

    def __init__(self, features: Tensor, size: tuple[int, int] | None = None, stride: int = 1,
                 amplitude: float = 1.0, dtype: torch.dtype | None = None,
                 round_to: torch.dtype | None = None):
        if features.ndim != 3 or not features.is_floating_point():
            raise ValueError(f"features must be a float tensor [B, N, d], not "
                             f"{list(features.shape)} of {features.dtype}")
        self.batch, self.pixels, _ = features.shape
        if stride < 1 or (stride > 1 and size is None) or (
                size is not None and size[0] * size[1] != self.pixels):
            raise ValueError(f"size {size} and stride {stride} do not fit {self.pixels} pixels")
        self.dtype = dtype or (torch.float16 if features.is_cuda else features.dtype)
        self.round_to = round_to or self.dtype
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            features = features.detach()
            if features.dtype != torch.float64:
                features = features.float()
            rounded = self._round(features - features.mean(1, keepdim=True))
            halves = self._halved_squares(rounded)
            ones = torch.ones_like(halves)
            self._queries = torch.cat([rounded, ones, -halves], 2)
            keys = torch.cat([rounded, -halves, ones], 2)
            self._chosen = None if stride == 1 else _grid(*size, stride, features.device)
            if self._chosen is not None:
                keys = keys.index_select(1, self._chosen)
            self._keys = F.pad(keys, (0, 0, 1, 0))  # the key of zeros
        self._factor = amplitude * self.pixels / keys.shape[1]
        # The sum it is divided by is about the number of keys: far from a 16-bit type's limits.
        self._mark = 2.0 ** min(15, int(math.log2(keys.shape[1] + 1)))

    def _round(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.round_to).to(self.dtype)

    def _halved_squares(self, rounded: Tensor) -> Tensor:
        """½|f|² of rounded features as [B, N, 3], the numbers to add up."""
        exact = rounded if rounded.dtype == torch.float64 else rounded.float()
        rest = 0.5 * exact.square().sum(2, keepdim=True)
        # A GPU is not waited for: there such numbers make NaN of all that follows.
        if not rest.is_cuda and not rest.amax() <= torch.finfo(self.round_to).max:  # or it is NaN
            raise ValueError(f"features are not finite, or too far apart for {self.round_to}")
        terms = []
        for _ in range(_TERMS):
            terms.append(self._round(rest))
            rest = rest - terms[-1].to(rest.dtype)
        return torch.cat(terms, 2)

    def part(self, rows: slice) -> AttentionGaussian:
        """The filter of some images of the batch; nothing is made anew."""
        some = copy(self)
        some._queries, some._keys = self._queries[rows], self._keys[rows]
        some.batch = len(some._keys)
        return some

    def filter(self, values: Tensor) -> Tensor:
        """`out_i = amplitude · Σ_j exp(-½|f_i - f_j|²) v_j` including j = i (method §4.9).

        Args:
            values: [B, K, N], any K from 1, any float dtype.

        Returns:
            [B, K, N] in the dtype of `values`, without gradient.
        """
        batch, labels, pixels = values.shape
        if (batch, pixels) != (self.batch, self.pixels):
            raise ValueError(f"values are [B={batch}, K, N={pixels}], the filter was built for "
                             f"B={self.batch}, N={self.pixels}")
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            moved = values.detach() if values.dtype == torch.float64 else values.detach().float()
            if self._chosen is not None:
                moved = moved.index_select(2, self._chosen)
            # Any scale of values shall fit: by a power of two, which changes no digit.
            exponent = torch.frexp(moved.abs().amax(2, keepdim=True)).exponent.clamp(-99, 99)
            moved = self._round(torch.ldexp(moved, -exponent)).transpose(1, 2)
            turns = math.ceil(labels / (_WIDEST - 1))
            width = math.ceil(labels / turns)
            head = 8 * math.ceil(max(self._keys.shape[2], width + 1) / 8)
            queries, keys = (F.pad(part, (0, head - part.shape[2]))[:, None]
                             for part in (self._queries, self._keys))
            parts = [self._attend(queries, keys, part) for part in moved.split(width, 2)]
            out = torch.cat(parts, 2).transpose(1, 2)
            return torch.ldexp(out, exponent).to(values.dtype).contiguous()

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [B, 1, N, head], keys [B, 1, M+1, head], values [B, M, width] → [B, N, width]."""
        width = values.shape[2]
        # One head dimension for all three, or there is no fused kernel.
        values = F.pad(values, (0, keys.shape[3] - width, 1, 0))
        values[:, 0, width] = self._mark
        with sdpa_kernel(_FUSED):
            out = F.scaled_dot_product_attention(queries, keys, values[:, None], scale=1.0)[:, 0]
        out = out if out.dtype == torch.float64 else out.float()
        return out[..., :width] * (self._factor * self._mark / out[..., width:width + 1])


def _grid(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Indices of pixels in the middle of the equal parts that every side is divided into."""
    rows, columns = ((2 * torch.arange(parts, device=device) + 1) * side // (2 * parts)
                     for side, parts in ((n, math.ceil(n / stride)) for n in (height, width)))
    return (rows[:, None] * width + columns).flatten()


def attention_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float,
                     stride: int = 2, amplitude: float = LATTICE_GAIN) -> Tensor:
    """`bilateral_filter` by attention, of the lattice's size: for the dense energy on a GPU.

    Args:
        images: [B, 3, H, W] RGB in 0..255.
        values: [B, K, H, W].
        sigma_xy: standard deviation in pixels.
        sigma_rgb: standard deviation in grey levels.
        stride: keys on every stride-th row and column (see `AttentionGaussian`).
        amplitude: factor of the true Gaussian sum.

    Returns:
        [B, K, H, W] in the dtype of `values`, without gradient.
    """
    engine = attention_engine(tuple(images.shape[-2:]), stride, amplitude)
    return bilateral_filter(images, values, sigma_xy, sigma_rgb, engine)


def attention_engine(size: tuple[int, int], stride: int = 2, amplitude: float = LATTICE_GAIN
                     ) -> Callable[[Tensor], AttentionGaussian]:
    """What `attention_filter` filters images of a (height, width) with, made of their features."""
    return partial(AttentionGaussian, size=size, stride=stride, amplitude=amplitude)
