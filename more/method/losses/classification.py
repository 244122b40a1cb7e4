"""Image-level classification of the tags (method §4.6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from more.method.numerics import full


def multilabel_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean over images and classes of `-[y log σ(x) + (1-y) log σ(-x)]`.

    Args: logits `[B, C]`, tags `[B, C]` zeros and ones. Returns: a scalar.
    """
    logits = full(logits)
    return F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype))
