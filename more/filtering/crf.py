"""Dense CRF refinement behind one call, with four interchangeable engines.

`fast` (own, numba) is the usual one; `pydensecrf` is what the released method used; `lattice`
(own, torch) gives the same labels as pydensecrf, on a GPU, too; `exact` is an oracle for small
images. This module imports none of their libraries before they are needed: a CRF worker stays
small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from more.errors import UserError
from more.filtering.parameters import CPU_ONLY, ENGINES, CRFParams


@lru_cache(maxsize=1)
def available_engine() -> tuple[str, str]:
    """The engine that "auto" stands for on this machine, and why.

    The first of `fast`, `pydensecrf` and `lattice` that can be imported: their libraries, numba
    and a compiled pydensecrf, are not to be had for every Python.
    """
    why = ""
    for name in ("fast", "pydensecrf"):
        missing = _missing(name)
        if not missing:
            return name, why or "numba is installed"
        why += f"{missing}; "
    return "lattice", f"{why}the slower lattice in torch serves, same labels"


def _missing(engine: str) -> str:
    """Why an engine cannot be imported; "" where it can."""
    try:
        if engine == "fast":
            import more.filtering.fast  # noqa: F401
        if engine == "pydensecrf":
            import pydensecrf.densecrf  # noqa: F401
    except (ImportError, OSError) as error:
        can_not = "cannot be used" if isinstance(error, OSError) else "cannot be imported"
        return f"{'numba' if engine == 'fast' else engine} {can_not} ({error})"
    return ""


def resolve_engine(engine: str) -> str:
    """Turn "auto" into a name and check that the engine can run here.

    Raises:
        UserError: unknown engine, or one whose library is missing.
    """
    if engine not in ("auto", *ENGINES):
        raise UserError(f"unknown CRF engine {engine!r}", fix=f"choose auto, {', '.join(ENGINES)}")
    if engine == "auto":
        return available_engine()[0]
    if missing := _missing(engine):
        package = "numba" if engine == "fast" else "pydensecrf2"
        raise UserError(missing, fix=f"pip install {package}, or use --engine auto")
    return engine


def load_engine(engine: str) -> None:
    """Do what an engine needs once before its first image: `fast` compiles or loads its code."""
    if engine == "fast":
        from more.filtering import fast

        fast.load()


def crf_devices(engine: str, device: str) -> list[str]:
    """The devices that `device` stands for on this machine, by name: "cpu", "cuda:0", …

    Args:
        engine: resolved, not "auto".
        device: "cpu", "cuda:N", or "cuda" for all of this machine's GPUs.

    Raises:
        UserError: no such device here, or an engine that knows the CPU only.
    """
    if device == "cpu":
        return ["cpu"]
    kind, colon, number = device.partition(":")
    if kind != "cuda" or colon and not number.isdecimal():
        raise UserError(f"unknown device {device!r} for the CRF", fix="give cpu, cuda or cuda:N")
    if engine in CPU_ONLY:
        raise UserError(f"the CRF engine {engine} does not run on {device}",
                        fix="use --engine lattice, or leave --device out")
    import torch

    count = torch.cuda.device_count()
    if count <= int(number or 0):
        raise UserError(f"device {device}: PyTorch sees {count} CUDA devices",
                        fix="leave --device out, or give another one")
    return [device] if number else [f"cuda:{k}" for k in range(count)]


def refine(image: np.ndarray, probs: np.ndarray, params: CRFParams,
           engine: str = "auto") -> np.ndarray:
    """Marginals of the dense CRF of one image.

    Args:
        image: [H, W, 3] uint8, RGB. The order of channels is fixed: another one changes about
            0.1 % of the labels, because the lattice is not invariant to it.
        probs: [K, H, W] probabilities of the labels; they need not sum to one.
        params: the CRF's parameters.
        engine: "auto", "fast", "pydensecrf", "lattice" or "exact".

    Returns:
        [K, H, W] float32 marginals.

    Raises:
        ValueError: shapes or types that do not fit, or probabilities that are not finite.
        UserError: the engine is unknown or missing.
    """
    return refine_batch([image], [probs], params, engine)[0]


def refine_batch(images: Sequence[np.ndarray], probs: Sequence[np.ndarray], params: CRFParams,
                 engine: str = "auto", device: str = "cpu") -> np.ndarray:
    """Marginals of the dense CRFs of images of one size with equally many labels.

    On the CPU each image gets bit by bit what it gets alone.

    Args:
        images, probs: B of them, each as in `refine`.
        params: the CRF's parameters.
        engine: as in `refine`; all but "lattice" take the images one after another.
        device: where "lattice" and "exact" run: "cpu" or "cuda:N".

    Returns:
        [B, K, H, W] float32 marginals.

    Raises:
        ValueError: see `refine`; images that differ in size or number of labels.
        UserError: the engine is unknown or missing, or cannot run on the device.
    """
    for image, maps in zip(images, probs, strict=True):
        _check(image, maps)
        if image.shape != images[0].shape or maps.shape != probs[0].shape:
            raise ValueError("images of a batch differ in size or number of labels")
    engine = resolve_engine(engine)
    if engine in CPU_ONLY:
        crf_devices(engine, device)
        alone = _refine_fast if engine == "fast" else _refine_pydensecrf
        return np.stack([alone(image, maps, params)
                         for image, maps in zip(images, probs, strict=True)])
    lot = len(images) if engine == "lattice" else 1  # a batched matrix product may round otherwise
    return np.concatenate([
        _refine_torch(np.stack(images[i:i + lot]), np.stack(probs[i:i + lot]), params, engine,
                      device) for i in range(0, len(images), lot)])


def _check(image: np.ndarray, probs: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if probs.ndim != 3 or probs.shape[1:] != image.shape[:2] or not len(probs):
        raise ValueError(f"probs {list(probs.shape)} do not fit an image of {image.shape[:2]}")
    if not np.isfinite(probs).all():
        raise ValueError("probabilities are not finite")


def _refine_fast(image: np.ndarray, probs: np.ndarray, params: CRFParams) -> np.ndarray:
    from more.filtering import fast

    load_engine("fast")
    try:
        return fast.marginals(image, probs, params.iterations,
                              (params.gaussian_xy, params.gaussian_compat),
                              (params.bilateral_xy, params.bilateral_rgb, params.bilateral_compat))
    except fast.TooFineError as error:
        # Not pydensecrf: its codes overflow without a word. The lattice says so if it must.
        _announce_substitute(str(error))
        return refine(image, probs, params, "lattice")


@lru_cache(maxsize=8)
def _announce_substitute(why: str) -> None:
    from more.progress import console

    console.print(f"dense CRF: {why}; engine lattice takes such images", highlight=False,
                  markup=False)


def _refine_pydensecrf(image: np.ndarray, probs: np.ndarray, params: CRFParams) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = probs.shape
    unary = np.clip(np.asarray(probs, np.float32), np.float32(1e-5), np.float32(1))
    unary = np.negative(np.log(unary, out=unary), out=unary).reshape(labels, -1)
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=params.gaussian_xy, compat=params.gaussian_compat)
    crf.addPairwiseBilateral(sxy=params.bilateral_xy, srgb=params.bilateral_rgb,
                             rgbim=np.ascontiguousarray(image), compat=params.bilateral_compat)
    q = np.array(crf.inference(params.iterations), dtype=np.float32)
    return q.reshape(labels, height, width)


def _refine_torch(images: np.ndarray, probs: np.ndarray, params: CRFParams, engine: str,
                  device: str) -> np.ndarray:
    import torch

    from more.filtering.exact import ExactGaussian
    from more.filtering.mean_field import mean_field
    from more.filtering.permutohedral import PermutohedralLattice

    kernel = ExactGaussian if engine == "exact" else PermutohedralLattice
    colours = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    maps = torch.from_numpy(probs.astype(np.float32, copy=False)).to(device)
    return mean_field(colours, maps, params, kernel).cpu().numpy()
