"""Segmentation scores from a confusion matrix (method.md §4.12).

`H[t, p]` counts pixels of true class `t` that were predicted as `p`; row and column 0 are the
background. Tensors are counted by torchmetrics (imported on first use, so that importing this
module stays cheap), label maps on disk by numpy, which starts at once; both give the same counts.
The scores themselves are numpy in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from more.data.shards.format import IGNORE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Figures of one confusion matrix; per-class arrays are `[K]` float64, background first.

    A class that is neither true nor predicted has NaN everywhere. A missed class, which has truth
    but no right pixel, has IoU, precision and recall 0, whether or not it was predicted elsewhere.

    Attributes:
        pixel_accuracy: share of right pixels.
        mean_accuracy: mean recall over the classes with truth.
        miou: mean IoU over the classes with truth.
        iou: by class.
        precision: by class.
        recall: by class.
        confusion: FP/TP by class: the lower, the fewer stray pixels; infinite for a class without
            a right pixel, so for every missed one.
    """

    pixel_accuracy: float
    mean_accuracy: float
    miou: float
    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    confusion: np.ndarray


def confusion_matrix(truth: Tensor | np.ndarray, predicted: Tensor | np.ndarray,
                     num_classes: int, pseudo: bool = False) -> Tensor:
    """Confusion counts of label maps.

    Args:
        truth: labels of any shape; values outside `0..K-1` (255 above all) are left out.
        predicted: labels of the same shape, on the same device.
        num_classes: `K`, background included.
        pseudo: leave out pixels predicted 255 (the unlabelled pixels of a pseudo-label).

    Returns:
        int64 `[K, K]`, true class first; sums over images and ranks.

    Raises:
        ValueError: shapes differ, or a counted pixel has a predicted value outside `0..K-1`.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    truth, predicted = torch.as_tensor(truth).long(), torch.as_tensor(predicted).long()
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {tuple(truth.shape)}, "
                         f"prediction {tuple(predicted.shape)}")
    counted = (truth >= 0) & (truth < num_classes)
    if pseudo:
        counted &= predicted != IGNORE
    truth, predicted = truth[counted], predicted[counted]
    if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < num_classes:
        bad = predicted[(predicted < 0) | (predicted >= num_classes)].unique().tolist()
        raise ValueError(f"predicted values {bad[:5]} are outside 0..{num_classes - 1}")
    if not predicted.numel():
        return torch.zeros(num_classes, num_classes, dtype=torch.long, device=truth.device)
    return multiclass_confusion_matrix(predicted, truth, num_classes, validate_args=False)


def joint_labels(truth: np.ndarray, predicted: np.ndarray, num_classes: int
                 ) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted class of every counted pixel as one number; no torch.

    Args:
        truth: uint8 `[H, W]`; values outside `0..K-1` (255 above all) are left out.
        predicted: uint8 `[H, W]`; 255 is left out (the unlabelled pixels of a pseudo-label).
        num_classes: `K`, background included.

    Returns:
        counted bool `[H, W]`; joint uint16 `[N]`, true class times K plus predicted class of the
        counted pixels. `bincount` of joint is `confusion_matrix(..., pseudo=True)`.

    Raises:
        ValueError: shapes differ, or a counted pixel has a predicted value outside `0..K-1`.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {predicted.shape}")
    counted = (truth < num_classes) & (predicted != IGNORE)
    true, other = truth[counted], predicted[counted]
    if other.size and other.max() >= num_classes:
        bad = np.unique(other[other >= num_classes]).tolist()
        raise ValueError(f"predicted values {bad[:5]} are outside 0..{num_classes - 1}")
    return counted, true * np.uint16(num_classes) + other


def joint_matrix(joint: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion counts int64 `[K, K]` from `joint_labels`."""
    counts = np.bincount(joint, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def scores(matrix: Tensor | np.ndarray, truth: np.ndarray | None = None) -> Scores:
    """Scores of a confusion matrix `[K, K]` (true class first).

    `miou` and `mean_accuracy` average over the classes that have truth; NaN when none has. All
    figures of a missed class are the worst there are, so that missing it can never pay.

    Args:
        matrix: counts of the pixels that have a label.
        truth: true pixels of each class `[K]`, those without a label included: a class that the
            labels leave out altogether is missed, too. None where all pixels have a label.
    """
    counts = np.asarray(matrix.cpu() if hasattr(matrix, "cpu") else matrix, dtype=np.float64)
    hit, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    there = (true if truth is None else np.asarray(truth)) > 0
    missed = there & (hit == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(missed, 0.0, hit / (true + predicted - hit))
        recall = np.where(missed, 0.0, hit / true)
        precision = np.where(missed, 0.0, hit / predicted)
        confusion = np.where(missed, np.inf, (predicted - hit) / hit)
        pixel_accuracy = hit.sum() / counts.sum()
    return Scores(float(pixel_accuracy), mean_over(recall, there), mean_over(iou, there), iou,
                  precision, recall, confusion)


def image_iou(matrix: np.ndarray, truth: np.ndarray | None = None) -> float:
    """Mean IoU of one image over the classes that its truth or its prediction contains.

    Args:
        matrix: as of `scores`.
        truth: as of `scores`.
    """
    iou = scores(matrix, truth).iou
    return mean_over(iou, ~np.isnan(iou))


def mean_over(values: np.ndarray, chosen: np.ndarray) -> float:
    """Mean of the chosen entries of `[K]` that are defined; NaN when there is none.

    Also NaN when one of them is infinite: FP/TP of a missed class is beyond every number, and a
    mean of the others would be the better, the more classes were missed.
    """
    kept = values[chosen & ~np.isnan(values)]
    return float(kept.mean()) if kept.size and np.isfinite(kept).all() else float("nan")


def dominant(values: np.ndarray, chosen: np.ndarray) -> int | None:
    """The entry that makes more than half of the mean of the chosen ones.

    Args:
        values: not negative, `[K]`.
        chosen: bool `[K]`.

    Returns:
        Its place; None where no entry does, the mean is not defined, or fewer than three entries
        make it.
    """
    kept = chosen & ~np.isnan(values)
    if kept.sum() < 3 or not np.isfinite(values[kept]).all():
        return None
    shares = np.where(kept, values, 0.0)
    place = int(shares.argmax())
    return place if shares[place] > shares.sum() / 2 else None


def true_pixels(truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class in a uint8 label map, int64 `[K]`."""
    return np.bincount(truth.reshape(-1), minlength=num_classes)[:num_classes]


def f1(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of image tags: `2·TP / (true + predicted)` over the classes of each image.

    Args:
        truth: zeros and ones, `[C]` or `[N, C]`.
        predicted: of the same shape.

    Returns:
        A float64 scalar array or `[N]`; 0 where neither names a class.
    """
    truth, predicted = np.asarray(truth) > 0, np.asarray(predicted) > 0
    both = (truth & predicted).sum(-1).astype(np.float64)
    return 2 * both / np.maximum(truth.sum(-1) + predicted.sum(-1), 1)
