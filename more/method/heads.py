"""From feature maps to logits, CAM, LAM and segmentation: pooling, classifiers, decoder.

B batch, C classes, D channels, h×w patches.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu

from more.tensors import full, full_precision

POOLINGS = ("max", "average", "lse", "competitive")
LSE_SHARPNESS = 5.0
PEAK_SHARE = 1 / 32  # part of the patches whose mean probability is the class's in the image
SMALLEST = 1e-6  # a probability keeps this distance from 0 and 1


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


def peak_mean(probabilities: Tensor) -> Tensor:
    """How likely images show each class, [B,C]: the mean over its likeliest patches, one in 32.

    Args:
        probabilities: [B,C,h,w], of every class in every patch.
    """
    flat = probabilities.flatten(2)
    return flat.topk(max(1, round(PEAK_SHARE * flat.shape[-1])), dim=-1).values.mean(-1)


def shown_probabilities(seg_logits: Tensor) -> Tensor:
    """How likely images show each class, [B,C], by the decoder's logits [B,C+1,h,w]."""
    return peak_mean(full(seg_logits).softmax(1)[:, 1:])


def log_odds(probabilities: Tensor) -> Tensor:
    """Logits of probabilities, finite also for 0 and 1."""
    return probabilities.clamp(SMALLEST, 1 - SMALLEST).logit()


BACKGROUND = 2.0  # score of the background; only its distance to the classes' biases matters
PRIOR = -2.5  # first bias of a class: rare
CHANNELS, IMAGES = 64, 16  # that the mean of many features is made of at a time


class CompetitiveHead(nn.Module):
    """What `pooling="competitive"` (own option) has besides the classifier's weights.

    Where features are pooled first, as released, a classifier may find an image's classes in any
    patch, since self-supervised ViTs spread them over all patches: it classifies well and localises
    badly. Here every patch decides by itself, by a softmax over the classes and a constant score of
    the background.

    Args:
        dim: channels D.
        num_classes: C.
        normalise: bring features to zero mean and unit variance over channels first; for the
            auxiliary features, which are taken before the final norm.
    """

    def __init__(self, dim: int, num_classes: int, normalise: bool):
        super().__init__()
        self.normalise = normalise
        self.register_buffer("centre", torch.zeros(dim))
        self.bias = nn.Parameter(torch.full((num_classes,), PRIOR))

    def prepare(self, features: Tensor) -> Tensor:
        """Features [B,D,h,w] minus the centre, the mean of all patches, float32."""
        return self._normalised(features) - self.centre[:, None, None]

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class scores [B,C,h,w] of prepared features → each patch's probabilities [B,C,h,w].

        Over the classes they sum to less than 1; the rest is background.
        """
        scores = scores + self.bias[:, None, None]
        background = torch.full_like(scores[:, :1], BACKGROUND)
        return torch.cat([background, scores], 1).softmax(1)[:, 1:]

    def logits(self, probabilities: Tensor) -> Tensor:
        """Log-odds [B,C] of the mean of a class's highest patch probabilities."""
        return log_odds(peak_mean(probabilities))

    @torch.no_grad()
    def set_centre(self, features: Tensor, share: float = 1.0,
                   add: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take the mean over images and patches of features [B,D,h,w] as the centre.

        Args:
            features: in any precision; some channels at a time are made float32, for all of them
                may be gigabytes.
            share: of these images in those of all ranks.
            add: adds up a tensor over the ranks; None: this process has all images.
        """
        width = features.shape[1]
        some = max(CHANNELS, width // 4 // CHANNELS * CHANNELS)
        means = [self._channels(features, slice(first, first + some)).mean((0, 2, 3))
                 for first in range(0, width, some)]
        mean = share * torch.cat(means).to(self.centre.device)
        self.centre.copy_(mean if add is None else add(mean))

    def _channels(self, features: Tensor, part: slice) -> Tensor:
        """Some channels of the normalised features, float32, in the features' order of memory."""
        if not self.normalise:
            return self._normalised(features[:, part])
        result = torch.empty_like(features[:, part], dtype=torch.float32)
        for first in range(0, len(features), IMAGES):
            images = slice(first, first + IMAGES)
            result[images] = self._normalised(features[images])[:, part]
        return result

    def _normalised(self, features: Tensor) -> Tensor:
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if not self.normalise:
            return features
        return F.layer_norm(features.movedim(1, -1), self.centre.shape).movedim(-1, 1)


DILATION = 5


class LargeFOV(nn.Module):
    """Two dilated 3×3 convolutions with ReLU and a 1×1 classifier, none with a bias.

    Args:
        in_channels: channels D of the feature map.
        width: hidden channels.
        out_channels: classes with the background, C+1.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int):
        super().__init__()
        dilated = {"padding": DILATION, "dilation": DILATION, "bias": False}
        self.conv6 = nn.Conv2d(in_channels, width, 3, **dilated)
        self.conv7 = nn.Conv2d(width, width, 3, **dilated)
        self.conv8 = nn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map [B,D,h,w] to segmentation logits [B,C+1,h,w].

        Maps made of tokens lie channels last in memory, and the convolutions keep that.
        """
        return self.conv8(relu(self.conv7(relu(self.conv6(features)))))
