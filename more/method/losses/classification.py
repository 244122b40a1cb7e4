"""Terms `cls` and `cls_aux`: does the image show its tags? (method §4.6)

B batch, C classes, h×w patches.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from more.method.heads import log_odds, shown_probabilities
from more.tensors import full


def multilabel_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean over images and classes of `-[y log σ(x) + (1-y) log σ(-x)]`.

    Args:
        logits: `[B, C]`.
        tags: `[B, C]`, zeros and ones.

    Returns:
        A scalar.
    """
    logits = full(logits)
    return F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype))


def image_tags_loss(seg_logits: Tensor, tags: Tensor) -> Tensor:
    """Whether the prediction shows the image's classes somewhere, and no others.

    The multi-label soft margin of the log-odds of `shown_probabilities`. Tags are known exactly
    where masks are guesses.

    Args:
        seg_logits: `[B, C+1, h, w]`, the decoder's.
        tags: `[B, C]`, zeros and ones.

    Returns:
        A scalar.
    """
    shown = shown_probabilities(seg_logits)
    return multilabel_soft_margin(log_odds(shown), tags)
