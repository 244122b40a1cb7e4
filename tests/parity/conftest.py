"""The folder of numeric fixtures: environment variable MORE_PARITY, default ../shared/parity."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("MORE_PARITY", ROOT.parent / "shared" / "parity"))


@pytest.fixture(scope="session")
def parity() -> Callable[[str], dict[str, np.ndarray]]:
    """`parity("gcr")` reads gcr.npz into a dict; skips when the fixtures are absent."""
    cache: dict[str, dict[str, np.ndarray]] = {}

    def load(name: str) -> dict[str, np.ndarray]:
        path = FOLDER / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"parity fixtures absent: {path} (set MORE_PARITY to their folder)")
        if name not in cache:
            with np.load(path) as archive:
                cache[name] = {key: archive[key] for key in archive.files}
        return cache[name]

    return load
