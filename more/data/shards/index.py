"""The small parts of one shard, held in memory by a reader, and where the large ones lie."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from more.data.shards.format import FORMAT, check_id
from more.data.shards.manifest import ShardEntry

_PARTS = ("ids", "tags", "sizes", "crc32")


class ShardIndex:
    """Ids, tags, sizes, offsets and checksums of one shard.

    Args:
        path: the shard.
        entry: what the manifest says of it.
        class_names: those of the set.

    Attributes (N rows in the file, n of them in use, P payloads):
        ids: names of the n images.
        tags: uint8 `[n, C]`.
        sizes: int32 `[n, 2]`, height and width.
        payloads: names of the payloads.
        offsets: int64 `[N+1]` by payload.
        crc32: uint32 `[N, P]`.
        rows: place in the file of each of the n rows.

    Raises:
        OSError: the file cannot be read. A KeyError, ValueError, IndexError or UnicodeDecodeError
            means as well that it is not such a shard.
    """

    def __init__(self, path: Path, entry: ShardEntry, class_names: list[str]):
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise ValueError("not a shard of format 1")
            self.payloads = [str(name) for name in file.attrs["payloads"]]
            stored = [*_PARTS, *(f"{name}/{part}" for name in self.payloads
                                 for part in ("bytes", "offsets"))]
            for name in stored:  # its sources may be elsewhere: a missing one reads as zeros
                if file[name].is_virtual:
                    raise ValueError(f"{name} is a virtual dataset, its data may be missing")
            self.ids = [text.decode("utf-8") for text in file["ids"][:]]
            self.tags, self.sizes = file["tags"][:], file["sizes"][:]
            self.offsets = {name: file[f"{name}/offsets"][:] for name in self.payloads}
            self.crc32 = file["crc32"][:]
            names = [str(name) for name in file.attrs["class_names"]]
        for image_id in self.ids:  # every command makes file names of them
            check_id(image_id)
        lengths = [len(self.ids), len(self.tags), len(self.sizes), len(self.crc32),
                   *(len(offsets) - 1 for offsets in self.offsets.values())]
        if any(length != entry.rows for length in lengths):
            raise ValueError(f"{len(self.ids)} rows, the manifest says {entry.rows}")
        if names != class_names:
            raise ValueError("its classes are not those of the manifest")
        self.rows = np.arange(entry.rows)

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: Iterable[int]) -> ShardIndex:
        """A copy that leaves some of the rows out."""
        keep = np.delete(np.arange(len(self)), list(rows))
        other = copy.copy(self)
        other.ids = [self.ids[row] for row in keep]
        other.tags, other.sizes, other.rows = self.tags[keep], self.sizes[keep], self.rows[keep]
        return other

    def extent(self, name: str, row: int) -> tuple[int, int, int]:
        """Where a payload lies.

        Args:
            name: of the payload.
            row: number of the row, of those in use.

        Returns:
            Start and end in the bytes of the dataset, and the crc32.
        """
        place = self.rows[row]
        start, stop = self.offsets[name][place:place + 2].tolist()
        return start, stop, int(self.crc32[place, self.payloads.index(name)])


def blob_maps(path: Path, payloads: Iterable[str]) -> dict[str, BlobMap]:
    """Where the payloads' bytes lie in a shard file."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: BlobMap(file[f"{name}/bytes"]) for name in payloads}


def file_names(path: Path) -> list[str]:
    """Names of the images' files in their data set, row by row; none in sets without them."""
    with h5py.File(path, "r", locking=False) as file:
        return [text.decode("utf-8") for text in file["files"][:]] if "files" in file else []


# Payload bytes, read straight from the file. HDF5 is asked once where the chunks of a dataset
# lie. After that, reading a payload is one system call, instead of a search in HDF5's chunk index
# and checks of whole chunks. The caller compares the payload's own crc32, so that no damaged
# bytes are used.

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
            """Note where a chunk begins in the file."""
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
