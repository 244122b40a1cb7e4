"""The dense CRF on a CPU, several times as fast as pydensecrf and without a compiler: numba.

Same model, same number of updates, same lattice (so nearly every pixel gets the same label); what
is saved is work that changes nothing. In reading order:

- `points`: where pixels lie in the lattice, and numbers for its points.
- `lattice`: the lattice of an image, with the chains of its points.
- `passes`: splat, blur and slice.
- `iterations`: the mean-field updates.
- `vectors`: the channels of a point as one vector.  `jit`: compiling once for all processes.

Importing it takes 0.3 s, for numba; `load` compiles or loads the machine code.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from more.filtering.fast.iterations import marginals
from more.filtering.fast.jit import FOLDER, FOLDER_NOTE, compiled_before, warm_up
from more.filtering.fast.lattice import TooFineError
from more.filtering.fast.passes import filter_image
from more.filtering.fast.vectors import WIDTHS

__all__ = ["TooFineError", "filter_image", "load", "marginals"]


@lru_cache(maxsize=1)
def load() -> float:
    """Compile the engine or load what was compiled; says so where it takes long.

    Every process calls it before its first image. The first one on a machine compiles, others
    that start meanwhile wait for it.

    Returns:
        Seconds that it took.
    """
    if FOLDER_NOTE:
        _say(FOLDER_NOTE)
    if not compiled_before():
        _say("compiling for this machine, once; about 20 s")
    seconds, compiled = warm_up(_call_everything)
    if compiled:
        _say(f"compiled in {seconds:.0f} s, kept in {FOLDER}")
    return seconds


def _say(text: str) -> None:
    from more.progress import console  # a worker that says nothing saves the time of importing it

    console.print(f"dense CRF: {text}", highlight=False, markup=False)


def _call_everything() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    for labels in {width + 1 for width in WIDTHS}:
        marginals(image, np.full((labels, 2, 3), 0.5, np.float32), 2, (1.0, 3.0), (67.0, 3.0, 4.0))
    filter_image(image.astype(np.float32), np.ones((1, 2, 3), np.float32), 67.0, 3.0)
