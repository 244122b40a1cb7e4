"""Shared memory in which loader processes leave the pixels of their parcels.

A DataLoader makes new shared memory for every batch and hands it over by a socket; where an image
takes a millisecond, page faults and handshakes are a third of the work. Here the memory is made
once. The parcels that are under way at any time are consecutive, so their places never collide
when there are more places than such parcels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class BatchRing:
    """Places for the pixels of `places` parcels.

    Args:
        places: more than the DataLoader has under way (workers × prefetch factor).
        images: images in a parcel.
        size: side of the images in pixels.
    """

    def __init__(self, places: int, images: int, size: int):
        self.memory = torch.zeros(places, images, size, size, 3, dtype=torch.uint8)
        self.memory.share_memory_()

    def place(self, parcel: int, number: int) -> np.ndarray:
        """Where image `number` of a parcel belongs, uint8 `[S, S, 3]` to be filled."""
        return self.memory[parcel % len(self.memory), number].numpy()

    def take(self, parcel: int, images: slice, copy: bool = True) -> Tensor:
        """The pixels of some images of a finished parcel, uint8 `[n, S, S, 3]`.

        A copy; or, with `copy=False`, the place itself, which holds them until the next batch is
        asked for.
        """
        pixels = self.memory[parcel % len(self.memory), images]
        return pixels.clone() if copy else pixels
