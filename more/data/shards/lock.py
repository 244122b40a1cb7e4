"""One writer per folder: a lock file with process id and host, renewed while its owner lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from more.data.shards.format import make_folder, temporary_path
from more.errors import UserError

LOCK = ".lock"
RENEWED = 30.0
"""Seconds between two renewals of a lock (the time of its file)."""
STALE = 900.0
"""Seconds without renewal after which a lock of another host no longer counts."""


@contextmanager
def folder_lock(folder: Path | str) -> Iterator[None]:
    """Be the only writer in `folder`, as long as the context is open.

    The kernel releases the lock when its process dies, so a killed job on this host leaves nothing
    to clean up. Locks may not be visible between hosts; so the lock file of another host counts
    until it has not been renewed for `STALE` seconds.

    Args:
        folder: made when missing.

    Raises:
        UserError: another process holds the folder (names its id and host), or the folder
            cannot be made.
    """
    path = make_folder(folder) / LOCK
    file, released = _take(path), threading.Event()
    renewal = threading.Thread(target=_renew, args=(file.fileno(), released), daemon=True)
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                               "renewed_every": RENEWED}))
        file.flush()
        renewal.start()
        yield
    finally:
        released.set()
        if renewal.ident is not None:
            renewal.join()
        if _same_file(file, path):  # else somebody took it over or deleted it
            path.unlink(missing_ok=True)
        file.close()


def is_held(folder: Path | str) -> bool:
    """Whether somebody writes into a folder at the moment; takes no lock that another would miss.

    Args:
        folder: any folder; one that is missing is not held.
    """
    path = Path(folder) / LOCK
    try:
        with open(path, encoding="utf-8") as file:
            owner = _owner(file)
            age = time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return False
    if owner.get("host") == socket.gethostname():
        return _alive(owner.get("pid"))
    return bool(owner) and age <= STALE


def _renew(descriptor: int, released: threading.Event) -> None:
    """Show other hosts that the owner lives, until the lock is released."""
    while not released.wait(RENEWED):
        try:
            os.utime(descriptor)
        except OSError:  # a file server that is away: the next renewal may succeed
            pass


def _take(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError as error:
            raise _refusal(path, _owner(file)) from error
        except OSError:  # no lock service on this file system: the owner's id decides
            locked = False
        if _same_file(file, path):  # else its owner removed it between our open and our lock
            break
        file.close()
    owner = _owner(file)
    here = owner.get("host") == socket.gethostname()
    held = _alive(owner.get("pid")) and not locked if here else not _stale(path, owner)
    if owner and held:
        file.close()
        raise _refusal(path, owner)
    return file


def _stale(path: Path, owner: dict[str, Any]) -> bool:
    """Whether a lock that its owner promised to renew was not renewed for long.

    The time now is that of a new file beside it: clocks of hosts and file servers differ.
    """
    if "renewed_every" not in owner:  # of an earlier version, which never renewed
        return False
    probe = temporary_path(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > STALE
    except FileNotFoundError:  # released just now
        return True
    finally:
        probe.unlink(missing_ok=True)


def _owner(file: IO[str]) -> dict[str, Any]:
    """What the lock file says; empty when it says nothing readable."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:  # somebody else's process, but a process
        return True
    return True


def _refusal(path: Path, owner: dict[str, Any]) -> UserError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"
    later = ""
    if "renewed_every" in owner and owner.get("host") != socket.gethostname():
        later = f" (a lock that is not renewed for {STALE / 60:.0f} minutes no longer counts)"
    return UserError(f"{path.parent}: {who} writes here",
                     fix=f"wait until it ends, or write elsewhere; if it no longer runs and "
                         f"this message stays, delete {path}{later}")
