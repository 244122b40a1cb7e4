"""From feature maps to logits, CAM and LAM: pooling, 1×1 heads, similarity with class tokens."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from more.model.precision import full_precision

POOLINGS = ("max", "average", "lse", "competitive")
LSE_SHARPNESS = 5.0


def pool_features(features: Tensor, pooling: str) -> Tensor:
    """Pool a feature map [B,D,h,w] over its patches to [B,D,1,1].

    Args:
        features: the map.
        pooling: "max" (each channel's own), "average", or "lse": log(mean(exp(r·x)))/r with r = 5,
            between the two.
    """
    if pooling == "max":
        return features.amax((2, 3), keepdim=True)
    if pooling == "average":
        return features.mean((2, 3), keepdim=True)
    with full_precision(features) as (precise,):
        total = precise.mul(LSE_SHARPNESS).logsumexp((2, 3), keepdim=True)
        count = features.shape[2] * features.shape[3]
        return ((total - log(count)) / LSE_SHARPNESS).to(features.dtype)


def localization_maps(features: Tensor, tokens: Tensor, similarity: str = "dot") -> Tensor:
    """LAM [B,C,h,w]: similarity of each class token [B,C,D] with each patch of [B,D,h,w]."""
    with full_precision(features, tokens) as (patches, classes):
        if similarity == "cosine":
            patches, classes = F.normalize(patches, dim=1), F.normalize(classes, dim=-1)
        return torch.einsum("bdhw,bcd->bchw", patches, classes)


def convolve(head: nn.Conv2d, features: Tensor) -> Tensor:
    """A 1×1 head outside autocast, result in float32: maps are thresholded, logits summed."""
    with torch.autocast(features.device.type, enabled=False):
        scores = head(features.to(head.weight.dtype))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
