"""Comparison rules of the parity fixtures: differences relative to an array's largest value."""

from __future__ import annotations

import numpy as np


def as_array(value) -> np.ndarray:
    """A numpy array from a tensor, an array or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def close(actual, expected, tol: float, floor: float = 0.0, name: str = "") -> None:
    """Assert max|actual - expected| <= tol * max|expected| + floor, shapes equal, all finite."""
    actual, expected = as_array(actual).astype(np.float64), as_array(expected).astype(np.float64)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape} != {expected.shape}"
    assert np.isfinite(actual).all(), f"{name}: not finite"
    if expected.size == 0:
        return
    error, limit = np.abs(actual - expected).max(), tol * np.abs(expected).max() + floor
    assert error <= limit, f"{name}: max difference {error:.3e} > {limit:.3e}"


def equal(actual, expected, name: str = "") -> None:
    """Assert that two integer arrays agree everywhere."""
    actual, expected = as_array(actual), as_array(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape} != {expected.shape}"
    different = int((actual.astype(np.int64) != expected.astype(np.int64)).sum())
    assert different == 0, f"{name}: {different} of {expected.size} entries differ"
