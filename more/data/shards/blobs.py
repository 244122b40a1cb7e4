"""Payload bytes of a shard, read straight from the file.

HDF5 is asked once where the chunks of a dataset lie. After that, reading a payload is one system
call, instead of a search in HDF5's chunk index and checks of whole chunks. The caller compares the
payload's own crc32, so that no damaged bytes are used.
"""

from __future__ import annotations

import errno
import os

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
        """Read a part of the dataset.

        Args:
            file: descriptor of the shard, open for reading.
            start: first byte.
            stop: end, exclusive.

        Returns:
            The bytes; fewer if the file is cut or closed.
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
        # One call for all chunks; the checksums between them go to memory that is not used.
        data, skipped = bytearray(stop - start), bytearray(_SUM_BYTES)
        view, at = memoryview(data), width - low
        parts: list[memoryview | bytearray] = [view[:at]]
        for _ in range(first, last):
            parts += (skipped, view[at:at + width])
            at += width
        got = os.preadv(file, parts, self.starts[first] + low)
        return data if got == stop - start + (last - first) * _SUM_BYTES else b""
