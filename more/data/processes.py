"""Loader processes and signals: what ends a whole group of processes is for their parent."""

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
    """Processes started inside are born deaf to `STOPS`; here they arrive at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(_: int) -> None:
    """Begin a loader process: deaf to `STOPS`, but to a SIGTERM of its parent's.

    Ctrl-C, a container's end and batch systems signal every process; a trainer that loses its
    loaders to it could not write its checkpoint. OpenCV must not start threads of its own here.
    """
    cv2.setNumThreads(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # where its starter did not hold them
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
