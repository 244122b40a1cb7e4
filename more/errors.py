"""Errors that are the user's to fix: the command line prints them without a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """Something outside the program is wrong; the message names it and says what to do.

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
    """A system error as a user error: no space, no permission, too many open files.

    Args:
        error: any system error.

    Returns:
        The user error; None for any other kind. Those that a defect of the program may cause as
        well (no such file) are to keep their traceback.
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
    """An error of PyTorch's DataLoader as a user error: a dead process, full shared memory.

    Args:
        error: any error of a loader.

    Returns:
        The user error; None for any other kind.
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
    """The known names most similar to a mistyped one, for "did you mean …?".

    Args:
        name: what was written.
        known: all names.
        count: how many to name at most.

    Returns:
        "a, b or c"; empty if none is similar.
    """
    close = get_close_matches(name, list(known), n=count, cutoff=0.4)
    if not close:
        return ""
    return close[0] if len(close) == 1 else ", ".join(close[:-1]) + " or " + close[-1]


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first few names for a message: "a, b, …"."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def need_path(path: Path, fix: str, *, folder: bool = False) -> None:
    """Refuse a path where no file is, or no folder.

    Args:
        path: what the user gave.
        fix: what to give instead.
        folder: a folder is wanted, not a file.

    Raises:
        UserError: there is none.
    """
    if not (path.is_dir() if folder else path.is_file()):
        raise UserError(f"{path}: no such {'folder' if folder else 'file'}", fix=fix)
