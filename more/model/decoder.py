"""The segmentation decoder: LargeFOV, three convolutions with a wide field of view."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

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
