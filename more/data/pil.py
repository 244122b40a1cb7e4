"""Resizing and colour jitter as the released code does them: Pillow, one 8-bit step at a time."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torchvision.transforms import functional

_STEPS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
          functional.adjust_hue)


def resize_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[H, W, 3]` → `[height, width, 3]` by Pillow's bilinear filter, which smooths when it
    shrinks."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def jitter_pil(image: np.ndarray, strength: tuple[float, float, float, float],
               rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, each rounded and cut at 0 and 255.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        strength: brightness, contrast, saturation (factor 1 ± value) and hue (turn ± value).
    """
    picture = Image.fromarray(image)
    for kind in rng.permutation(4):
        centre = 0.0 if kind == 3 else 1.0
        low = centre - strength[kind] if kind == 3 else max(0.0, centre - strength[kind])
        picture = _STEPS[kind](picture, rng.uniform(low, centre + strength[kind]))
    return np.array(picture)
