"""Mean-field inference of the dense CRF in torch, batched, on any device.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(2011), with Potts compatibilities and symmetrically normalised kernels D^-½ K D^-½ (method §4.12).
With the lattice as kernel it gives what pydensecrf gives, up to float32 rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from more.filtering.bilateral import bilateral_features, spatial_features
from more.filtering.parameters import CRFParams
from more.filtering.permutohedral import PermutohedralLattice


class _NormalisedKernel:
    """`weight · D^-½ K D^-½`: built once, used by all iterations; D is the filtered constant map.

    Args:
        kernel: built for features [B, N, d].
        like: any tensor [·, ·, N] with the type and device of the values.
        batch: B.
        weight: factor of the result.
    """

    def __init__(self, kernel, like: Tensor, batch: int, weight: float):
        self.kernel = kernel
        ones = like.new_ones(batch, 1, like.shape[-1])
        self.scale = (kernel.filter(ones) + 1e-20).rsqrt()
        self.weighted = self.scale * weight

    def __call__(self, values: Tensor) -> Tensor:
        return self.kernel.filter(values * self.scale).mul_(self.weighted)


def mean_field(images: Tensor, probs: Tensor, params: CRFParams,
               engine: type = PermutohedralLattice) -> Tensor:
    """Marginals of the dense CRF after `params.iterations` mean-field steps.

    Args:
        images: [B, 3, H, W] RGB in 0..255.
        probs: [B, K, H, W] probabilities of the labels; they need not sum to one. The unary energy
            is -log(clip(p, 1e-5, 1)).
        params: weights and standard deviations of the two pair terms.
        engine: `PermutohedralLattice`, or `ExactGaussian` as an oracle on small images.

    Returns:
        [B, K, H, W] float32 marginals that sum to one over K, without gradient.
    """
    batch, labels, height, width = probs.shape
    if images.shape != (batch, 3, height, width):
        raise ValueError(f"images {list(images.shape)} do not fit probs {list(probs.shape)}")
    with torch.no_grad(), torch.autocast(probs.device.type, enabled=False):
        log_p = probs.float().clamp(1e-5, 1).log().flatten(2)
        near = _NormalisedKernel(
            engine(spatial_features(height, width, params.gaussian_xy, log_p)),
            log_p, 1, params.gaussian_compat)
        similar = _NormalisedKernel(
            engine(bilateral_features(images, params.bilateral_xy, params.bilateral_rgb)),
            log_p, batch, params.bilateral_compat)
        q = log_p.softmax(1)
        for _ in range(params.iterations):
            # The place kernel is the same for all images: their maps are more labels to it.
            energy = near(q.view(1, batch * labels, -1)).view_as(q)
            q = energy.add_(similar(q)).add_(log_p).softmax(1)
        return q.view(batch, labels, height, width)
