"""Term `mcl`: tokens of different classes should differ (method §4.6).

B batch, C classes, D channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from more.method.losses.classification import multilabel_soft_margin
from more.tensors import full


def class_token_decorrelation(tokens: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross entropy that asks every unit token to be most similar to itself.

    Args:
        tokens: `[B, C, D]`, class tokens.
        temperature: of the softmax.

    Returns:
        A scalar, the mean over images and classes; ln C with zero gradient when all tokens of an
        image are equal.
    """
    unit = F.normalize(full(tokens), dim=-1, eps=1e-12)
    logits = unit @ unit.transpose(1, 2) / temperature
    return -logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).mean()


def mixed_class_token_loss(tokens: Tensor, tags: Tensor, temperature: float = 0.07) -> Tensor:
    """Half decorrelation, half classification by the mean channel of the unit tokens.

    The form behind the published COCO log; the released scripts do not use it.

    Args:
        tokens: `[B, C, D]`, class tokens.
        tags: `[B, C]`, zeros and ones.
        temperature: of the softmax.

    Returns:
        A scalar.
    """
    logits = F.normalize(full(tokens), dim=-1, eps=1e-12).mean(dim=-1)
    decorrelation = class_token_decorrelation(tokens, temperature)
    return 0.5 * decorrelation + 0.5 * multilabel_soft_margin(logits, tags)


