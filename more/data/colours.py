"""Colour jitter: drawn as numbers in the loader, applied to whole batches on the device.

Brightness, contrast and saturation are affine maps of RGB, so together they are one 3x4 matrix per
image. Hue is a rotation in HSV. The numbers depend only on the generator of the sample, not on the
place where they are applied. `jitter_pil` is the other way, that of the released code: Pillow
changes the pixels in the loader.

B is the number of images in a batch, H and W the height and width, S the side of a square view.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from more.tensors import box_mask, constant

_PILLOW_STEPS = (functional.adjust_brightness, functional.adjust_contrast,
                 functional.adjust_saturation, functional.adjust_hue)
_GREY = np.array([0.299, 0.587, 0.114])
UNCHANGED = np.concatenate([np.eye(3, 4).reshape(-1), [0.0]]).astype(np.float32)
_UNCHANGED = torch.from_numpy(UNCHANGED)


def draw_jitter(image: np.ndarray, strength: tuple[float, float, float, float],
                rng: np.random.Generator) -> np.ndarray:
    """Draw brightness, contrast and saturation in random order, then hue, as numbers.

    Unlike in `jitter_pil`, values are not cut off at 0 and 255 between the steps.

    Args:
        image: RGB uint8 `[H, W, 3]`; contrast moves values towards or away from its mean.
        strength: brightness, contrast, saturation (factor 1 ± value) and hue (turn ± value).
        rng: what the order and the factors are drawn from.

    Returns:
        float32 `[13]`: a 3x4 matrix by rows (last column: offset in grey levels) and the turn of
        the hue as a share of the full circle.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    grey = np.broadcast_to(_GREY, (3, 3))
    mean = np.array(cv2.mean(image)[:3])
    for kind in rng.permutation(3):
        factor = rng.uniform(max(0.0, 1 - strength[kind]), 1 + strength[kind])
        if kind == 0:
            step, shift = factor * np.eye(3), np.zeros(3)
        elif kind == 1:  # towards or away from the mean grey of the image as it is by now
            level = _GREY @ (matrix @ mean + offset)
            step, shift = factor * np.eye(3), np.full(3, (1 - factor) * level)
        else:
            step, shift = factor * np.eye(3) + (1 - factor) * grey, np.zeros(3)
        matrix, offset = step @ matrix, step @ offset + shift
    turn = rng.uniform(-strength[3], strength[3])
    return np.append(np.column_stack([matrix, offset]).reshape(-1), turn).astype(np.float32)


def jitter_pil(image: np.ndarray, strength: tuple[float, float, float, float],
               rng: np.random.Generator) -> np.ndarray:
    """Change colours as the released code does: in random order, one 8-bit step after another.

    Each step is rounded and cut off at 0 and 255.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        strength: brightness, contrast, saturation (factor 1 ± value) and hue (turn ± value).
        rng: what the order and the factors are drawn from.

    Returns:
        uint8 `[H, W, 3]`.
    """
    picture = Image.fromarray(image)
    for kind in rng.permutation(4):
        centre = 0.0 if kind == 3 else 1.0
        low = centre - strength[kind] if kind == 3 else max(0.0, centre - strength[kind])
        picture = _PILLOW_STEPS[kind](picture, rng.uniform(low, centre + strength[kind]))
    return np.array(picture)


def apply_jitter(images: Tensor, jitter: Tensor) -> Tensor:
    """Change the colours of each image by the numbers of `draw_jitter`.

    Args:
        images: float `[B, 3, H, W]` in 0..255.
        jitter: `[B, 13]` of `draw_jitter`.

    Returns:
        `[B, 3, H, W]`, whole grey levels in 0..255.
    """
    matrix = jitter[:, :12].reshape(-1, 3, 4)
    flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], images.flatten(2))
    images = flat.round_().clamp_(0, 255).reshape(images.shape)
    return turn_hue(images, jitter[:, 12]).round_()


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue; value and saturation of HSV stay.

    Args:
        images: `[B, 3, H, W]`, any range from 0.
        turn: `[B]`, share of the full circle.

    Returns:
        `[B, 3, H, W]` in the same range.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    span = value - images.amin(1)
    scale = span.clamp_min(1e-6).reciprocal_()
    hue = torch.where(value == red, (green - blue) * scale,
                      torch.where(value == green, (blue - red) * scale + 2,
                                  (red - green) * scale + 4))
    hue += 6 * turn[:, None, None]
    # Red, green and blue at their places along the hexagon of hues.
    near = hue[:, None] + constant((5, 3, 1), hue)[:, None, None]
    near.sub_((near / 6).floor_(), alpha=6)  # faster than a remainder
    torch.minimum(near, 4 - near, out=near).clamp_(0, 1)
    return torch.addcmul(value[:, None], span[:, None], near, value=-1, out=near)


def network_input(batch: dict[str, Tensor], device: torch.device, mean: Sequence[float],
            std: Sequence[float]) -> Tensor:
    """Make network input of a training batch: copy to the device, jitter colours, normalise.

    Args:
        batch: `images` uint8 `[B, S, S, 3]`, `jitter` float32 `[B, 13]`, `box` int64 `[B, 4]`; on
            the CPU, in pinned memory if the copy to a GPU is not to wait.
        device: where to.
        mean: of RGB in 0..255.
        std: of RGB in 0..255.

    Returns:
        float32 `[B, 3, S, S]`, jittered inside the box (padding stays black) and normalised.
    """
    pixels = batch["images"].to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    if bool((batch["jitter"] != _UNCHANGED).any()):
        jittered = apply_jitter(pixels, batch["jitter"].to(device, non_blocking=True))
        box = batch["box"].to(device, non_blocking=True)
        pixels = torch.where(box_mask(box, tuple(pixels.shape[-2:]))[:, None], jittered, pixels)
    shift, scale = (constant(v, pixels).view(3, 1, 1) for v in (mean, std))
    return ((pixels - shift) / scale).contiguous()
