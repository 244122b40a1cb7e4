"""Compiling the engine: once on a machine, before the work, into a folder that can be written.

numba compiles at the first call and keeps the machine code in a folder. Left alone it looks at one
source file only, so a change in a function that another file calls would go unnoticed; it takes
the folder of the sources, which may be read-only; and processes that start together all compile.
Here the folder's name holds a digest of all sources of the engine, and `warm_up` lets one process
compile while the others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

OPTIONS = dict(cache=True, nogil=True, error_model="numpy",
               fastmath={"contract", "nsz", "nnan", "ninf"})
_functions: list = []


def cache_folder() -> tuple[Path, str]:
    """Where compiled code is kept, and why not elsewhere ("" where it is the usual place).

    The first that can be written of: NUMBA_CACHE_DIR, the user's cache folder, and a folder of
    this user alone among the temporary files.

    Raises:
        OSError: none can be written.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "more"
    given = os.environ.get("NUMBA_CACHE_DIR")
    own = Path(tempfile.gettempdir()) / f"more-{os.getuid()}"
    refused = []
    for base in ([Path(given)] if given else []) + [usual, own]:
        folder = base / f"crf-{_digest()}"
        try:
            _make_private(folder) if base == own else folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            refused.append(f"{base}: {error.strerror or error}")
            continue
        note = f"{'; '.join(refused)}; compiled code is kept in {base}" if refused else ""
        return folder, note
    raise OSError(f"no folder for compiled code can be written ({'; '.join(refused)}); "
                  "set NUMBA_CACHE_DIR to one")


def _make_private(folder: Path) -> None:
    """Compiled code is run as it is found, so a folder that others can write is none to use."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder.parent)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError("belongs to somebody else")
    folder.mkdir(exist_ok=True)


def _digest() -> str:
    """Of all sources of the engine: code of other sources is never taken for theirs."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


FOLDER, FOLDER_NOTE = cache_folder()


def jit(function: Callable) -> Callable:
    """`numba.njit` with the engine's options and folder."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(FOLDER)
    try:
        made = numba.njit(**OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before
    _functions.append(made)
    return made


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, this process alone compiles; where files cannot be locked, do not wait."""
    with open(FOLDER / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: compiling twice does no harm
            pass
        yield


def compiled_before() -> bool:
    """Whether it was compiled into the folder for this processor, Python and numba."""
    return _mark().exists()


def _mark() -> Path:
    from llvmlite.binding import get_host_cpu_name

    key = f"{numba.__version__} {sys.implementation.cache_tag} {get_host_cpu_name()}"
    return FOLDER / f"compiled-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def warm_up(work: Callable[[], object]) -> tuple[float, bool]:
    """Run `work`, which calls every function in all its forms, with others kept waiting.

    Returns:
        Seconds, and whether anything was compiled.
    """
    with one_at_a_time():
        started = time.perf_counter()
        work()
        compiled = any(sum(made.stats.cache_misses.values()) for made in _functions)
        _mark().touch()
    return time.perf_counter() - started, compiled
