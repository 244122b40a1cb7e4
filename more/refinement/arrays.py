"""The dense CRF of one picture in memory, without shards. Imports no torch.

H and W are the sides of the picture, K counts its labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from more.data.pixels import Picture, read_pixels
from more.errors import UserError
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement, refine_maps

if TYPE_CHECKING:
    import torch

MOST = 255  # labels that a uint8 mask can hold beside 255, "without label"
_ROUNDING = 1e-3


class Refined(NamedTuple):
    """What the CRF makes of a picture.

    Attributes:
        mask: uint8 `[H, W]`, the number of the best label: the row of `probabilities`.
        probabilities: float32 `[K, H, W]`, summing to one in each pixel.
    """

    mask: np.ndarray
    probabilities: np.ndarray


def refine(image: Picture, probabilities: np.ndarray | torch.Tensor, *, iterations: int = 10,
           gaussian_xy: float = 1.0, gaussian_compat: float = 3.0, bilateral_xy: float = 67.0,
           bilateral_rgb: float = 3.0, bilateral_compat: float = 4.0,
           engine: str = "auto") -> Refined:
    """Refine the probabilities of a picture with a dense CRF: edges follow the picture's.

    The defaults are those of the released method.

    Args:
        image: path, PIL image or RGB array uint8 `[H, W, 3]`.
        probabilities: `[K, H, W]`, at the size of the picture, between 0 and 1; by custom the
            background comes first. They need not sum to one.
        iterations: steps of mean field.
        gaussian_xy: reach of the smoothness term, in pixels.
        gaussian_compat: its weight.
        bilateral_xy: reach of the term that holds alike pixels together, in pixels.
        bilateral_rgb: how alike they must be, in grey levels.
        bilateral_compat: its weight.
        engine: "auto", "fast", "pydensecrf", "lattice" or "exact".

    Returns:
        Mask and refined probabilities.

    Raises:
        UserError: shapes that do not fit, values that are no probabilities, parameters out of
            range, an engine that is missing, a picture too large for the memory.
    """
    params = CRFParams(iterations, gaussian_xy, gaussian_compat, bilateral_xy, bilateral_rgb,
                       bilateral_compat)
    pixels = read_pixels(image).image
    maps = _checked(probabilities, pixels.shape[:2])
    refined = refine_maps(pixels, maps, Refinement(params, engine))
    return Refined(refined.argmax(0).astype(np.uint8), refined)


def _checked(probabilities: np.ndarray | torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """The probabilities as float32 `[K, H, W]`, if they are some and fit the picture."""
    if hasattr(probabilities, "detach"):  # a tensor, on any device
        probabilities = probabilities.detach().cpu().float().numpy()
    maps = np.ascontiguousarray(probabilities, np.float32)
    shape, wanted = " × ".join(map(str, maps.shape)), " × ".join(map(str, size))
    if maps.ndim != 3 or maps.shape[1:] != size:
        raise UserError(f"probabilities of shape {shape} do not fit a picture of {wanted} pixels",
                        fix=f"give labels × height × width, here K × {wanted}; resize the maps "
                            "to the picture first")
    if not 0 < len(maps) <= MOST:
        raise UserError(f"probabilities of {len(maps)} labels", fix=f"give 1 to {MOST} labels")
    if not np.isfinite(maps).all():
        raise UserError("probabilities are not finite", fix="look for NaN where they are made")
    if maps.min() < -_ROUNDING or maps.max() > 1 + _ROUNDING:
        raise UserError(f"probabilities from {maps.min():.3g} to {maps.max():.3g}",
                        fix="give values between 0 and 1; of logits, the softmax over labels")
    return maps
