"""File descriptors of shards: a limited number stays open in the whole process.

All shard sets of a process take their descriptors here. So the number of open files does not depend
on the number of sets, of shards or of threads that read them.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MOST = 256  # more save nothing: a file is opened in far less time than a shard is read


@dataclass
class _File:
    descriptor: int
    readers: int = 0  # threads that read from it just now: it must stay open
    dropped: bool = False  # to be closed by its last reader


class Descriptors:
    """Open files by owner and path; the one that was unused longest is closed first.

    Safe for threads. A forked process starts with no open file and does not touch its parent's.

    Args:
        limit: how many files may be open; None: a quarter of what the system grants the process,
            at most `MOST`. It is exceeded only while more threads than that read at a time.
    """

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[int, Path], _File] = OrderedDict()
        self._gone: deque[int] = deque()  # owners that ended while the lock was held

    @property
    def limit(self) -> int:
        """How many files may be open now."""
        if self._limit is not None:
            return self._limit
        granted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return MOST if granted == resource.RLIM_INFINITY else min(MOST, max(granted // 4, 4))

    def held(self, owner: int) -> list[int]:
        """Descriptors of the owner's open files."""
        with self._lock:
            return [file.descriptor for key, file in self._files.items() if key[0] == owner]

    @contextmanager
    def reading(self, owner: int, path: Path, fresh: bool = False) -> Iterator[int]:
        """A descriptor of `path`, which stays open inside.

        Args:
            owner: whose file it is.
            path: file to read.
            fresh: open it anew. The old descriptor may belong to another file by now, so it is
                forgotten and not closed.

        Yields:
            The descriptor.
        """
        key = owner, path
        with self._lock:
            self._forget_gone()
            if fresh:
                self._files.pop(key, None)
            file = self._files.get(key)
            if file is None:
                self._make_room(self.limit - 1)
                file = self._files[key] = _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._files.move_to_end(key)
            file.readers += 1
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.readers -= 1
                if file.dropped and not file.readers:
                    _close(file.descriptor)
                self._make_room(self.limit)

    def close(self, owner: int) -> None:
        """Close the files of an owner; they open again when needed."""
        with self._lock:
            self._drop(owner)

    def forget(self, owner: int) -> None:
        """`close` for `__del__`, which may run while this thread already holds the lock."""
        self._gone.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._forget_gone()
            finally:
                self._lock.release()

    def _forget_gone(self) -> None:
        while self._gone:
            self._drop(self._gone.popleft())

    def _drop(self, owner: int) -> None:
        for key in [key for key in self._files if key[0] == owner]:
            file = self._files.pop(key)
            file.dropped = True
            if not file.readers:
                _close(file.descriptor)

    def _make_room(self, most: int) -> None:
        """Close unused files, the longest unused first, until at most `most` are open."""
        excess = len(self._files) - most
        if excess <= 0:
            return
        unused = [key for key, file in self._files.items() if not file.readers]
        for key in unused[:excess]:
            _close(self._files.pop(key).descriptor)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:  # a library closed it already
            raise


DESCRIPTORS = Descriptors()
_owners = itertools.count()


class OpenFiles:
    """The open files of one shard set. Pickled or copied to another process, it holds none.

    Args:
        pool: where the descriptors are; the process's own unless a test gives another.
    """

    def __init__(self, pool: Descriptors = DESCRIPTORS):
        self._pool, self._owner = pool, next(_owners)

    def __len__(self) -> int:
        return len(self.descriptors())

    def descriptors(self) -> list[int]:
        """Descriptors that are open now."""
        return self._pool.held(self._owner)

    def reading(self, path: Path, fresh: bool = False):  # noqa: ANN201 - a context manager
        """See `Descriptors.reading`."""
        return self._pool.reading(self._owner, path, fresh)

    def close(self) -> None:
        """Close this process's files; they open again when needed."""
        self._pool.close(self._owner)

    def __del__(self) -> None:
        with suppress(AttributeError, TypeError):  # half made, or the interpreter ends
            self._pool.forget(self._owner)

    def __reduce__(self) -> tuple:
        return OpenFiles, ()
