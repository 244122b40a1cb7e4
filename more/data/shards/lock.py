"""One writer per folder: a lock file with process id and host."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from more.data.shards.format import make_folder
from more.errors import UserError

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path | str) -> Iterator[None]:
    """Hold the only writer's place in `folder` (made when missing).

    The kernel drops the lock when its process dies, so a killed job on this host leaves nothing
    to clean up. A lock file of another host is believed, since locks may not travel between hosts.

    Raises:
        UserError: another process holds the folder (names its id and host), or the folder
            cannot be made.
    """
    path = make_folder(folder) / LOCK
    file = _take(path)
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


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
    if owner and (not here or (not locked and _alive(owner.get("pid")))):
        file.close()
        raise _refusal(path, owner)
    return file


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
    return UserError(f"{path.parent}: {who} writes here",
                     fix=f"wait until it ends, or write elsewhere; if it no longer runs and "
                         f"this message stays, delete {path}")
