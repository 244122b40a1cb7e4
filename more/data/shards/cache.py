"""A cache of shards on a disk of the node, for sets that live on a slow shared file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import sys
from pathlib import Path

from more.data.shards.format import commit, make_folder, temporary_path
from more.data.shards.manifest import ShardEntry
from more.errors import UserError

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ShardCache:
    """Copies each shard to a local folder when it is first read.

    Files are named by their sha256, so several sets can share the folder. A copy gets its name only
    after its hash was compared. Processes of one node wait for each other, so that each shard is
    copied once. Nothing is ever deleted: the folder should be scratch space of the job.

    Args:
        folder: on the local disk; made when missing.
    """

    def __init__(self, folder: Path | str):
        self.folder = make_folder(folder)
        self._full = False

    def fetch(self, source: Path, entry: ShardEntry) -> Path:
        """The local copy of a shard, made now if needed.

        Args:
            source: the shard.
            entry: what the manifest says of it.

        Returns:
            The copy; `source` itself once the local disk is full, which is printed.

        Raises:
            UserError: the source is not the file that the manifest describes.
        """
        target = self.folder / f"{entry.sha256}.h5"
        if self._is_there(target, entry):
            return target
        if self._full:
            return source
        with open(target.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_there(target, entry):
                return target
            try:
                _copy(source, target, entry)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._full = True
                print(f"note: {self.folder} is full; {source.parent} is read directly from now on",
                      file=sys.stderr, flush=True)
                return source
        return target

    @staticmethod
    def _is_there(target: Path, entry: ShardEntry) -> bool:
        try:
            return target.stat().st_size == entry.bytes
        except FileNotFoundError:
            return False


def _copy(source: Path, target: Path, entry: ShardEntry) -> None:
    temporary, digest = temporary_path(target), hashlib.sha256()
    try:
        with open(source, "rb") as old, open(temporary, "wb") as new:
            while block := old.read(_BLOCK):
                digest.update(block)
                new.write(block)
        if digest.hexdigest() != entry.sha256:
            raise UserError(f"{source}: content changed since it was written (sha256 differs)",
                            fix="restore the file from a copy, or make the set again")
        commit(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
