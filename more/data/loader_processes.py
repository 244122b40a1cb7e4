"""Start of loader processes: they ignore signals that are meant for the process that trains.

Ctrl-C, the end of a container and batch systems signal every process of a group. A trainer whose
loaders ended then could not load the rest of its step and write its checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def held_signals() -> Iterator[None]:
    """Block `STOPS` inside: processes started there inherit that; here the signals arrive later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(_: int) -> None:
    """Set up a loader process: no threads of OpenCV, and only its parent's SIGTERM ends it.

    Args:
        _: number of the worker, which a DataLoader passes.
    """
    cv2.setNumThreads(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # where its starter did not hold them
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """Wait for a SIGTERM that the parent sent, then end the process."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
