"""Loader processes: how they start, and the memory that batches pass through.

They ignore signals that are meant for the process that trains. Ctrl-C, the end of a container and
batch systems signal every process of a group. A trainer whose loaders ended then could not load the
rest of its step and write its checkpoint.

A DataLoader makes new shared memory for every batch and hands it over by a socket. Where loading an
image takes a millisecond, page faults and messages between processes are a third of the work. Here
the memory is made once, as a ring buffer. The chunks that are loaded at any time have consecutive
numbers, so they never share a place as long as there are more places than chunks under way.

S is the side of an image in pixels.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from more.device import local_device

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


# Memory: shared with loader processes, and pinned for a GPU.

class BatchRing:
    """A ring buffer in shared memory, in which loader processes leave the pixels of their chunks.

    Args:
        places: number of chunks that fit; more than the DataLoader has under way (workers ×
            prefetch factor).
        images: images in a chunk.
        size: side of the images in pixels.
    """

    def __init__(self, places: int, images: int, size: int):
        self.memory = torch.zeros(places, images, size, size, 3, dtype=torch.uint8)
        self.memory.share_memory_()

    def place(self, chunk: int, number: int) -> np.ndarray:
        """The memory for one image of a chunk, to be filled by a loader process.

        Args:
            chunk: number of the chunk.
            number: number of the image in it.

        Returns:
            uint8 `[S, S, 3]`.
        """
        return self.memory[chunk % len(self.memory), number].numpy()

    def take(self, chunk: int, images: slice, copy: bool = True) -> Tensor:
        """The pixels of some images of a finished chunk.

        Args:
            chunk: number of the chunk.
            images: which of its images.
            copy: return a copy. Without it the ring's own memory is returned, which holds these
                pixels until the next batch is asked for.

        Returns:
            uint8 `[n, S, S, 3]`.
        """
        pixels = self.memory[chunk % len(self.memory), images]
        return pixels.clone() if copy else pixels


def pinned_ahead(batches: Iterator[dict[str, Any]],
                 pin: Callable[[Tensor], Tensor] = Tensor.pin_memory) -> Iterator[dict[str, Any]]:
    """Copy batches to pinned memory, one ahead, in a thread; the order stays.

    (The thread of a DataLoader pins only what arrives as a tensor. Here small arrays and tokens
    arrive as NumPy arrays, and pixels stay in the ring.)

    Args:
        batches: the iterator may use the memory of a batch again for the next one.
        pin: returns a pinned copy of a tensor.

    Yields:
        The batches with their tensors pinned.

    Raises:
        Exception: what `batches` raises, at the same place.
    """
    def following() -> dict[str, Any] | None:
        """The next batch, pinned; None after the last one."""
        batch = next(batches, None)
        return batch and {name: pin(value) if isinstance(value, Tensor) else value
                          for name, value in batch.items()}

    with ThreadPoolExecutor(1, "pinning", _on_this_device) as thread:
        coming = thread.submit(following)
        while (batch := coming.result()) is not None:
            coming = thread.submit(following)
            yield batch


def _on_this_device() -> None:
    """Without this the thread would take memory on the machine's first GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.set_device(local_device())
