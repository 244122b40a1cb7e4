"""Errors that are the user's to fix: the command line prints them without a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """Something outside the program is wrong; the message names it and the remedy.

    Args:
        message: what is wrong, with the file or key it is about.
        fix: what to do about it, as an instruction.
    """

    def __init__(self, message: str, fix: str | None = None):
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


def from_system(error: OSError) -> UserError | None:
    """The user's part of a system error: no space, no permission, too many open files; None for
    anything else.

    Errors that a defect of the program may cause as well (no such file) keep their traceback.
    """
    remedies = {
        errno.ENOSPC: "free some space there, then run the same command again",
        errno.EDQUOT: "free some of your quota there, then run the same command again",
        errno.EACCES: "correct its permissions, or choose another place",
        errno.EPERM: "correct its permissions, or choose another place",
        errno.EROFS: "choose a place that can be written",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "let one process open more files, as in `ulimit -n 4096`, or use fewer "
                      "workers; then run the same command again",
        errno.ENFILE: "the machine has too many open files: end other jobs, then run the same "
                      "command again",
    }
    if error.errno not in remedies:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return UserError(f"{where}{error.strerror}", remedies[error.errno])


def from_loading(error: RuntimeError) -> UserError | None:
    """The user's part of an error of PyTorch's loader: a dead process, full shared memory; or None.
    """
    text = str(error).split("\n")[0]
    shared = "shared memory" in text or ("/torch_" in text and os.strerror(errno.ENOSPC) in text)
    if "DataLoader worker" in text and not shared:
        return UserError(f"a loader process has died: {text}",
                         "mostly memory was short: lower data.workers or data.prefetch_mb; "
                         "training goes on from the last checkpoint by the same command")
    if shared:
        return UserError(f"the shared memory, /dev/shm, is full: {text}",
                         "free some of it, let the container have more (docker run --shm-size), or "
                         "lower data.workers or data.prefetch_mb; data.workers=0 needs none")
    return None


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name` as a phrase: "a, b or c"; empty without candidates."""
    close = get_close_matches(name, list(known), n=count, cutoff=0.4)
    if not close:
        return ""
    return close[0] if len(close) == 1 else ", ".join(close[:-1]) + " or " + close[-1]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names for a message, and that there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
