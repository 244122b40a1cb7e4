"""The exact Gaussian filter: quadratic in the number of pixels, an oracle for small images."""

from __future__ import annotations

import torch
from torch import Tensor


class ExactGaussian:
    """Same interface as `PermutohedralLattice`, without approximation.

    Args:
        features: [B, N, d] in units of the standard deviation.
        chunk: rows of the N × N kernel held at a time.
    """

    def __init__(self, features: Tensor, chunk: int = 1024):
        if features.ndim != 3 or not features.is_floating_point():
            raise ValueError(f"features must be a float tensor [B, N, d], not "
                             f"{list(features.shape)} of {features.dtype}")
        self.features = features.detach()
        self.chunk = chunk

    def filter(self, values: Tensor) -> Tensor:
        """`out_i = Σ_j exp(-½|f_i - f_j|²) v_j` including j = i (method §4.9).

        Args:
            values: [B, K, N].

        Returns:
            [B, K, N] in the dtype of `values`, without gradient.
        """
        features = self.features
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            moved = values.detach().to(features.dtype).transpose(1, 2)
            parts = []
            for rows in features.split(self.chunk, dim=1):
                # Differences first: |a|² - 2ab + |b|² would cancel in float32.
                squares = sum((rows[..., axis, None] - features[:, None, :, axis]).square()
                              for axis in range(features.shape[-1]))
                parts.append(torch.exp(-0.5 * squares) @ moved)
            return torch.cat(parts, 1).transpose(1, 2).to(values.dtype).contiguous()
