"""Read a shard set: random access by row, checked on the way in."""

from __future__ import annotations

import copy
import errno
import os
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from more.data.shards.cache import ShardCache
from more.data.shards.codec import decode_image, decode_mask
from more.data.shards.format import PAYLOADS, sha256_file
from more.data.shards.index import BlobMap, ShardIndex, blob_maps, file_names
from more.data.shards.manifest import REBUILD, Manifest, ShardEntry, read_manifest
from more.data.shards.open_files import OpenFiles
from more.errors import UserError

_RESTORE = f"restore the file from a copy, or delete it and {REBUILD}"


def shard_ids(path: Path) -> list[str]:
    """Ids of one finished shard file, in order."""
    with h5py.File(path, "r", locking=False) as file:
        return [text.decode("utf-8") for text in file["ids"][:]]


class ShardSet:
    """A shard set, opened for reading. Imports no torch; file handles open lazily per process.

    Rows are numbered through all shards in order. Safe to share between threads and to hand to
    worker processes, forked or spawned: a handle is never shared between processes. However many
    sets and shards there are, few files of a process are open at a time (see `Descriptors`).

    Args:
        path: folder with `manifest.json`.
        kind: refuse a set of another kind ("images", "seeds", "masks"); None takes any.
        check: "quick" compares files, sizes in bytes and row counts with the manifest;
            "full" also hashes every file (about 1 s per GB). Training starts with "full".
        share: (rank, world): of the files, "full" hashes every world-th from number rank on.
        only: numbers of the shards to open, for a worker that serves one shard; rows and shards
            are then numbered through these alone. None opens all.
        cache: copy each shard to this local folder when it is first read (see `ShardCache`).

    Attributes:
        manifest: the manifest; `manifest.provenance` says where the set came from.
        kind: "images", "seeds" or "masks".
        class_names: the C foreground classes in order.
        ids: names of the N images.
        tags: uint8 `[N, C]`.
        sizes: int32 `[N, 2]`, height and width.

    Raises:
        UserError: not a shard set, another kind, or a shard missing, truncated, foreign, changed.
    """

    def __init__(self, path: Path | str, kind: str | None = None, check: str = "quick",
                 only: Sequence[int] | None = None, share: tuple[int, int] = (0, 1),
                 cache: Path | str | None = None):
        if check not in ("quick", "full"):
            raise ValueError(f"check {check!r} is not quick or full")
        self.path = Path(path)
        self._cache = None if cache is None else ShardCache(cache)
        while True:
            manifest = read_manifest(self.path)
            try:
                self._open(manifest, kind, check == "full", only, share)
                return
            except UserError:  # unless a shard was replaced since the manifest was read
                if read_manifest(self.path) == manifest:
                    raise

    def _open(self, manifest: Manifest, kind: str | None, full: bool,
              only: Sequence[int] | None, share: tuple[int, int]) -> None:
        self.manifest = manifest
        self.kind, self.class_names = self.manifest.kind, list(self.manifest.class_names)
        if kind is not None and self.kind != kind:
            raise UserError(f"{self.path}: holds {self.kind}, not {kind}",
                            fix=f"give a shard set of {kind}")
        if not self.manifest.shards:
            raise UserError(f"{self.path}: the set has no shard", fix=_RESTORE)
        if only is not None:
            chosen = [self.manifest.shards[number] for number in only]
            self.manifest = replace(self.manifest, shards=chosen)
        self._files = OpenFiles()
        self._maps: dict[int, tuple[Path, dict[str, BlobMap]]] = {}
        rank, world = share
        self._gather([self._load(entry, full and number % world == rank)
                      for number, entry in enumerate(self.manifest.shards)])

    def _gather(self, indexes: list[ShardIndex]) -> None:
        self._indexes = indexes
        self.ids = [image_id for index in indexes for image_id in index.ids]
        self.tags = np.concatenate([index.tags for index in indexes])
        self.sizes = np.concatenate([index.sizes for index in indexes])
        self._starts = np.cumsum([0, *self.shard_rows]).tolist()
        self._rows: dict[str, int] | None = None
        self._names: dict[int, list[str]] = {}  # of files, by shard: read when asked for

    def without(self, rows: Iterable[int]) -> ShardSet:
        """The same set less some rows; the others are numbered anew, in the same order."""
        dropped: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            shard, place = self.locate(row)
            dropped[shard].append(place)
        other = copy.copy(self)
        other._files, other._maps = OpenFiles(), {}
        other._gather([index.without(dropped[number]) if number in dropped else index
                       for number, index in enumerate(self._indexes)])
        return other

    @property
    def num_classes(self) -> int:
        """Number of foreground classes C."""
        return len(self.class_names)

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard, in order."""
        return [len(index) for index in self._indexes]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def locate(self, i: int) -> tuple[int, int]:
        """Shard number and row in it of row `i` of the set."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        shard = bisect_right(self._starts, i) - 1
        return shard, int(i) - self._starts[shard]

    def rows_of(self, shard: int) -> range:
        """Rows of the set that lie in shard number `shard`."""
        return range(self._starts[shard], self._starts[shard + 1])

    def index_of(self, image_id: str) -> int:
        """Row of an image.

        Args:
            image_id: its id.

        Returns:
            The row.

        Raises:
            UserError: the set has no such image.
        """
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.ids)}
        if image_id not in self._rows:
            raise UserError(f"{self.path}: no image {image_id!r}",
                            fix="take shards that were made from the same images")
        return self._rows[image_id]

    def has(self, name: str) -> bool:
        """Whether any row carries payload `name` ("image", "mask", "seed", "confidence")."""
        return any(name in index.payloads for index in self._indexes)

    def blob(self, name: str, i: int, check: bool = True) -> bytes | bytearray:
        """Bytes of a payload.

        Args:
            name: "image", "mask", "seed" or "confidence".
            i: row of the set.
            check: compare the checksum; without it only the length (for measurements).

        Returns:
            The bytes; empty if the row has no such payload.

        Raises:
            UserError: the stored bytes are damaged.
        """
        if name not in PAYLOADS:
            raise ValueError(f"payload {name!r} is not one of {PAYLOADS}")
        shard, row = self.locate(i)
        index = self._indexes[shard]
        if name not in index.payloads:
            return b""
        start, stop, crc32 = index.extent(name, row)
        path, maps = self._where(shard)
        for fresh in (False, True):  # libraries that close a descriptor twice may close ours
            with self._files.reading(path, fresh) as file:
                data = maps[name].read(file, start, stop)
            if len(data) == stop - start and (not check or zlib.crc32(data) == crc32):
                return data
        raise UserError(f"{path}: {name} of {self.ids[i]!r} is damaged", fix=_RESTORE)

    def file_name(self, i: int) -> str:
        """Name of the image's file in its data set, with folders; "" where it is not recorded."""
        shard, place = self.locate(i)
        if shard not in self._names:
            with _named(self._file(shard)):
                self._names[shard] = file_names(self._file(shard))
        names = self._names[shard]
        return names[self._indexes[shard].rows[place]] if names else ""

    def image(self, i: int) -> np.ndarray:
        """Image of row `i`, RGB uint8 `[H, W, 3]`."""
        return decode_image(self.blob("image", i), self._item(i))

    def mask(self, i: int) -> np.ndarray | None:
        """Label map of row `i`, uint8 `[H, W]` (255 = ignore); None where there is none."""
        data = self.blob("mask", i)
        return decode_mask(data, self._item(i)) if data else None

    def close(self) -> None:
        """Close this process's files; they open again when needed."""
        self._files.close()

    def _item(self, i: int) -> str:
        return f"{self._file(self.locate(i)[0])}: {self.ids[i]!r}"

    def _file(self, shard: int) -> Path:
        return self.path / self.manifest.shards[shard].file

    def _where(self, shard: int) -> tuple[Path, dict[str, BlobMap]]:
        """The file to read a shard from, and where its payloads lie in it."""
        if shard not in self._maps:
            path, entry = self._file(shard), self.manifest.shards[shard]
            if self._cache is not None:
                path = self._cache.fetch(path, entry)
            with _named(path):
                self._maps[shard] = path, blob_maps(path, self._indexes[shard].payloads)
        return self._maps[shard]

    def _load(self, entry: ShardEntry, hashed: bool) -> ShardIndex:
        path = self.path / entry.file
        if not path.is_file():
            raise UserError(f"{path}: shard is missing", fix=_RESTORE)
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(f"{path}: {size} bytes, the manifest says {entry.bytes}", fix=_RESTORE)
        if hashed and sha256_file(path) != entry.sha256:
            raise UserError(f"{path}: content changed since it was written (sha256 differs)",
                            fix=_RESTORE)
        with _named(path):
            return ShardIndex(path, entry, self.class_names)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what HDF5 says about a file into an error with its name."""
    try:
        yield
    except UserError as error:  # an id that leads out of a folder
        raise UserError(f"{path}: {error.message}", fix="do not use a set that you did not make; "
                        f"otherwise {_RESTORE}") from error
    except (OSError, KeyError, ValueError, IndexError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise UserError(f"{path}: not a readable shard ({error})", fix=_RESTORE) from error
