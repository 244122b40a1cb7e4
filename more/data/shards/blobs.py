"""Payload bytes of a shard, read straight from the file.

HDF5 says once where the chunks of a dataset lie; then a payload is one read of the system instead
of a walk through HDF5's chunk index and checks of whole chunks. The caller compares the payload's
own crc32, so nothing unverified comes back.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np

_SUM_BYTES = 4  # fletcher32 follows the data of every chunk


class BlobMap:
    """Where the bytes of one 1-D uint8 dataset lie in its file.

    Args:
        dataset: chunked with fletcher32 and no other filter, or empty.

    Raises:
        ValueError: stored in another way than format 1 says.
    """

    def __init__(self, dataset: h5py.Dataset):
        self.size = int(dataset.shape[0])
        self.width = 1
        self.starts: list[int] = []  # of each chunk in the file
        self.runs: list[int] = []  # chunks of one number follow one another
        if self.size == 0:
            return
        plain = dataset.id.get_create_plist().get_nfilters() == 1 and dataset.fletcher32
        if dataset.dtype != np.uint8 or dataset.chunks is None or not plain:
            raise ValueError(f"{dataset.name} is not stored as format 1 says")
        self.width = int(dataset.chunks[0])
        starts = np.full(-(-self.size // self.width), -1, np.int64)

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            if chunk.filter_mask or chunk.size != self.width + _SUM_BYTES:
                raise ValueError(f"{dataset.name} has a chunk without its checksum")
            starts[chunk.chunk_offset[0] // self.width] = chunk.byte_offset

        dataset.id.chunk_iter(note)
        if (starts < 0).any():
            raise ValueError(f"{dataset.name} lacks {int((starts < 0).sum())} chunks")
        self.starts = starts.tolist()
        gaps = np.diff(starts) != self.width + _SUM_BYTES
        self.runs = [0, *np.cumsum(gaps).tolist()]

    def read(self, file: int, start: int, stop: int) -> bytes | bytearray:
        """Bytes `start` to `stop` (exclusive) of the dataset; fewer when the file is cut or closed.

        Args:
            file: descriptor of the shard, open for reading.
        """
        if stop <= start:
            return b""
        try:
            return self._read(file, start, stop)
        except OSError as error:
            if error.errno == errno.EBADF:
                return b""
            raise

    def _read(self, file: int, start: int, stop: int) -> bytes | bytearray:
        width, first, last = self.width, start // self.width, (stop - 1) // self.width
        low, high = start - first * width, stop - last * width
        if first == last:
            return os.pread(file, high - low, self.starts[first] + low)
        if self.runs[first] != self.runs[last]:  # not one after the other in the file
            cuts = [(low, width), *[(0, width)] * (last - first - 1), (0, high)]
            return b"".join(os.pread(file, b - a, self.starts[chunk] + a)
                            for chunk, (a, b) in zip(range(first, last + 1), cuts, strict=True))
        # One call for all chunks; the sums between them go to a place that nobody reads.
        data, skipped = bytearray(stop - start), bytearray(_SUM_BYTES)
        view, at = memoryview(data), width - low
        parts: list[memoryview | bytearray] = [view[:at]]
        for _ in range(first, last):
            parts += (skipped, view[at:at + width])
            at += width
        got = os.preadv(file, parts, self.starts[first] + low)
        return data if got == stop - start + (last - first) * _SUM_BYTES else b""


class OpenFiles:
    """Descriptors of the files read lately, of this process alone, at most `limit` at a time.

    A process that inherits the object by fork opens its own; pickled, it holds none.
    """

    def __init__(self, limit: int = 64):
        self.limit = limit
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path, fresh: bool = False) -> int:
        """A descriptor of `path`, valid until `limit` other files were asked for.

        `fresh` opens the file anew; the old descriptor, which may be somebody else's by now, is
        forgotten, not closed.
        """
        if self._pid != os.getpid():  # forked: leave the parent's descriptors alone
            self._files, self._pid = OrderedDict(), os.getpid()
        if fresh:
            self._files.pop(path, None)
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= self.limit:
                _close(self._files.popitem(last=False)[1])
            file = self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._files.move_to_end(path)
        return file

    def close(self) -> None:
        """Close this process's files; they open again when needed."""
        if self._pid == os.getpid():
            for file in self._files.values():
                _close(file)
        self._files.clear()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        return OpenFiles, (self.limit,)


def _close(file: int) -> None:
    try:
        os.close(file)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
