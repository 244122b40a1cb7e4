"""Dense CRF refinement of one image behind one call, with three interchangeable engines.

`pydensecrf` is the fast CPU engine; `lattice` (own, torch) gives the same labels and serves where
pydensecrf is missing or on a GPU; `exact` is an oracle for small images. This module imports
neither torch nor pydensecrf before they are needed: a CRF worker stays below 100 MB.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from more.errors import UserError

ENGINES = ("pydensecrf", "lattice", "exact")


@dataclass(frozen=True)
class CRFParams:
    """Dense CRF of the released method (method §4.12).

    Args:
        iterations: mean-field steps.
        gaussian_xy: standard deviation of the place kernel in pixels.
        gaussian_compat: Potts weight of the place kernel.
        bilateral_xy: standard deviation of the bilateral kernel in pixels.
        bilateral_rgb: standard deviation of the bilateral kernel in grey levels.
        bilateral_compat: Potts weight of the bilateral kernel.

    Raises:
        UserError: a value is not finite, negative, or a standard deviation is zero.
    """

    iterations: int = 10
    gaussian_xy: float = 1.0
    gaussian_compat: float = 3.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0
    bilateral_compat: float = 4.0

    def __post_init__(self) -> None:
        if int(self.iterations) != self.iterations:
            raise UserError(f"crf.iterations is {self.iterations}", fix="give a whole number")
        for field in dataclasses.fields(self):
            value = float(getattr(self, field.name))
            spread = not field.name.endswith(("compat", "iterations"))
            if not math.isfinite(value) or value < 0 or (spread and value == 0):
                raise UserError(f"crf.{field.name} is {value}",
                                fix="give a positive number" if spread else "give 0 or more")
            # 67 and 67.0 are the same parameters and must have the same record.
            object.__setattr__(self, field.name,
                               int(value) if field.name == "iterations" else value)


def available_engine() -> tuple[str, str]:
    """The engine that "auto" stands for on this machine, and why."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        return "lattice", f"pydensecrf cannot be imported ({error}): own lattice, same labels"
    return "pydensecrf", "pydensecrf is installed"


def resolve_engine(engine: str) -> str:
    """Turn "auto" into a name and check that the engine can run here.

    Raises:
        UserError: unknown engine, or pydensecrf was asked for and is missing.
    """
    if engine not in ("auto", *ENGINES):
        raise UserError(f"unknown CRF engine {engine!r}", fix=f"choose auto, {', '.join(ENGINES)}")
    if engine in ("auto", "pydensecrf"):
        name, reason = available_engine()
        if engine == "pydensecrf" and name != engine:
            raise UserError(reason, fix="pip install pydensecrf2, or use --engine lattice")
        return name
    return engine


def refine(image: np.ndarray, probs: np.ndarray, params: CRFParams,
           engine: str = "auto") -> np.ndarray:
    """Marginals of the dense CRF of one image.

    Args:
        image: [H, W, 3] uint8, RGB. The order of channels is fixed: another one changes about
            0.1 % of the labels, because the lattice is not invariant to it.
        probs: [K, H, W] probabilities of the labels; they need not sum to one.
        params: the CRF's parameters.
        engine: "auto", "pydensecrf", "lattice" or "exact".

    Returns:
        [K, H, W] float32 marginals.

    Raises:
        ValueError: shapes or types that do not fit, or probabilities that are not finite.
        UserError: the engine is unknown or missing.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if probs.ndim != 3 or probs.shape[1:] != image.shape[:2] or not len(probs):
        raise ValueError(f"probs {list(probs.shape)} do not fit an image of {image.shape[:2]}")
    if not np.isfinite(probs).all():
        raise ValueError("probabilities are not finite")
    engine = resolve_engine(engine)
    if engine == "pydensecrf":
        return _refine_pydensecrf(image, probs, params)
    return _refine_torch(image, probs, params, engine)


def _refine_pydensecrf(image: np.ndarray, probs: np.ndarray, params: CRFParams) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = probs.shape
    unary = -np.log(np.clip(probs, 1e-5, 1.0).astype(np.float32)).reshape(labels, -1)
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=params.gaussian_xy, compat=params.gaussian_compat)
    crf.addPairwiseBilateral(sxy=params.bilateral_xy, srgb=params.bilateral_rgb,
                             rgbim=np.ascontiguousarray(image), compat=params.bilateral_compat)
    q = np.array(crf.inference(params.iterations), dtype=np.float32)
    return q.reshape(labels, height, width)


def _refine_torch(image: np.ndarray, probs: np.ndarray, params: CRFParams,
                  engine: str) -> np.ndarray:
    import torch

    from more.filtering.exact import ExactGaussian
    from more.filtering.meanfield import mean_field
    from more.filtering.permutohedral import PermutohedralLattice

    kernel = ExactGaussian if engine == "exact" else PermutohedralLattice
    colours = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    maps = torch.from_numpy(np.ascontiguousarray(probs, dtype=np.float32))[None]
    return mean_field(colours, maps, params, kernel)[0].numpy()
