"""Boundary IoU: the IoU of the bands along the outlines of prediction and truth.

After "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (Cheng et al. 2021).
The band of a class in one image is its mask less the mask eroded by `d` pixels, with `d` a share
of the image's diagonal. Over a data set, per class:

    boundary IoU = Σ |band(truth) ∩ band(prediction)| / Σ |band(truth) ∪ band(prediction)|

Three conventions:
* Distance is that of a square window (a 3 × 3 erosion, `d` times), as in the paper.
* Outside the image is no class, as in the paper: where a mask touches the image's border it has a
  band, too.
* A pixel ignored on either side (true value 255, or unlabelled in the prediction) is in no band
  and ends no mask: both masks are eroded as if such pixels belonged to them. So the ring of 255
  around VOC's objects makes no outline by itself, a band is measured from beyond the ring, and a
  prediction equal to the truth elsewhere scores 1, whatever it holds in ignored pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

DEFAULT_BOUNDARY = 0.02


def band_width(size: tuple[int, int], share: float) -> int:
    """Pixels of the band: `share` of the diagonal of an image `(height, width)`, at least 1."""
    return max(1, round(share * math.hypot(*size)))


def outline_band(label: np.ndarray, ignored: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a label map that lie in the band of their own class, for all classes at once.

    A pixel leaves its class when eroded by `width` exactly when its window of `2 * width + 1`
    holds another class or a place outside the image. The window's smallest and largest label,
    ignored pixels apart, tell the former, so two filters serve any number of classes.

    Args:
        label: uint8 `[H, W]`.
        ignored: bool `[H, W]`.
        width: `d` in pixels.

    Returns:
        bool `[H, W]`; False where ignored.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    holes = np.negative(ignored.view(np.uint8))  # 255 where ignored: neither smallest nor largest
    band = cv2.erode(label | holes, window) != cv2.dilate(label & ~holes, window)
    band[:width] = band[-width:] = True
    band[:, :width] = band[:, -width:] = True
    return band & ~ignored


def boundary_counts(truth: np.ndarray, label: np.ndarray, ignored: np.ndarray, num_classes: int,
                    share: float) -> np.ndarray:
    """Sizes of the bands of every class in one image.

    Args:
        truth: uint8 `[H, W]` with values in `0..K-1` outside `ignored`.
        label: the prediction, likewise.
        ignored: bool `[H, W]`.
        num_classes: `K`, background included.
        share: width of the band over the image's diagonal.

    Returns:
        int64 `[3, K]`: pixels in both bands, in the truth's, in the prediction's. They sum over
        images.
    """
    width = band_width(truth.shape, share)
    true, predicted = (outline_band(side, ignored, width) for side in (truth, label))
    both = true & predicted & (truth == label)
    return np.stack([np.bincount(side[where], minlength=num_classes)
                     for side, where in ((truth, both), (truth, true), (label, predicted))])


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """Boundary IoU `[K]` from sums of `boundary_counts`; NaN for a class without any band."""
    both, true, predicted = np.asarray(counts, np.float64)
    with np.errstate(invalid="ignore"):
        return both / (true + predicted - both)
