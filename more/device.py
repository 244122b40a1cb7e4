"""How the C library hands out memory while a CPU trains."""

from __future__ import annotations

import ctypes
import os

# Numbers of glibc's mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEPT = 2**31 - 1  # bytes, the most that mallopt takes


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next tensor instead of giving it back to the system.

    By default blocks above 32 MB come from the system every time, and every page of them is made
    and cleared when it is first touched: hundreds of thousands in an update at 448 px. The process
    stays as large as it was at its largest.

    Returns: False where there is nothing to set: another C library, or settings of the user's
    (`GLIBC_TUNABLES`, `MALLOC_…_`).
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT), (TOP_PAD, 2**26))
    return all([mallopt(number, value) == 1 for number, value in wanted])
