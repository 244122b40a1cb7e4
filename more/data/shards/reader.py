"""Read a shard set: random access by row, checked on the way in."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from more.data.shards.codec import decode_image, decode_mask
from more.data.shards.format import FORMAT, PAYLOADS, sha256_file
from more.data.shards.manifest import REBUILD, ShardEntry, read_manifest
from more.errors import UserError

_RESTORE = f"restore the file from a copy, or delete it and {REBUILD}"


def shard_ids(path: Path) -> list[str]:
    """Ids of one finished shard file, in order."""
    with h5py.File(path, "r", locking=False) as file:
        return [text.decode("utf-8") for text in file["ids"][:]]


def _read(dataset: h5py.Dataset, start: int, stop: int) -> bytes | None:
    """Bytes `start` to `stop`; None where even the raw chunks cannot be read.

    A flipped bit fails the sum of a whole 64 KiB chunk. Then the chunks are read as they are,
    and the item's own crc32 tells the damaged item from its sound neighbours.
    """
    try:
        return dataset[start:stop].tobytes()
    except OSError:
        width = dataset.chunks[0]
    try:
        chunks = [dataset.id.read_direct_chunk((first,))[1][:width]
                  for first in range(start - start % width, stop, width)]
    except OSError:
        return None
    return b"".join(chunks)[start % width:start % width + stop - start]


class _Index:
    """Small parts of one shard, held in memory: ids, tags, sizes, offsets, checksums."""

    def __init__(self, file: h5py.File, entry: ShardEntry, class_names: list[str]):
        if file.attrs.get("format") != FORMAT:
            raise ValueError("not a shard of format 1")
        self.ids = [text.decode("utf-8") for text in file["ids"][:]]
        self.tags, self.sizes = file["tags"][:], file["sizes"][:]
        self.payloads = [str(name) for name in file.attrs["payloads"]]
        self.offsets = {name: file[f"{name}/offsets"][:] for name in self.payloads}
        self.crc32 = file["crc32"][:]
        rows = entry.rows
        lengths = [len(self.ids), len(self.tags), len(self.sizes), len(self.crc32),
                   *(len(offsets) - 1 for offsets in self.offsets.values())]
        if any(length != rows for length in lengths):
            raise ValueError(f"{len(self.ids)} rows, the manifest says {rows}")
        if [str(name) for name in file.attrs["class_names"]] != class_names:
            raise ValueError("its classes are not those of the manifest")


class ShardSet:
    """A shard set, opened for reading. Imports no torch; file handles open lazily per process.

    Rows are numbered through all shards in order. Safe to hand to worker processes, forked or
    spawned: a handle is never shared between processes.

    Args:
        path: folder with `manifest.json`.
        kind: refuse a set of another kind ("images", "seeds", "masks"); None takes any.
        check: "quick" compares files, sizes in bytes and row counts with the manifest;
            "full" also hashes every file (about 1 s per GB). Training starts with "full".
        only: numbers of the shards to open, for a worker that serves one shard; rows and shards
            are then numbered through these alone. None opens all.

    Attributes:
        manifest: the manifest; `manifest.provenance` says where the set came from.
        class_names: foreground classes in order. num_classes: their number C.
        ids: names, `[N]`. tags: uint8 `[N, C]`. sizes: int32 `[N, 2]`, height and width.

    Raises:
        UserError: not a shard set, another kind, or a shard missing, truncated, foreign, changed.
    """

    def __init__(self, path: Path | str, kind: str | None = None, check: str = "quick",
                 only: Sequence[int] | None = None):
        if check not in ("quick", "full"):
            raise ValueError(f"check {check!r} is not quick or full")
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.kind, self.class_names = self.manifest.kind, list(self.manifest.class_names)
        if kind is not None and self.kind != kind:
            raise UserError(f"{self.path}: holds {self.kind}, not {kind}",
                            fix=f"give a shard set of {kind}")
        if not self.manifest.shards:
            raise UserError(f"{self.path}: the set has no shard", fix=_RESTORE)
        if only is not None:
            chosen = [self.manifest.shards[number] for number in only]
            self.manifest = replace(self.manifest, shards=chosen)
        self._indexes = [self._load(entry, check) for entry in self.manifest.shards]
        self.ids = [image_id for index in self._indexes for image_id in index.ids]
        self.tags = np.concatenate([index.tags for index in self._indexes])
        self.sizes = np.concatenate([index.sizes for index in self._indexes])
        self._starts = np.cumsum([0, *self.shard_rows])
        self._rows: dict[str, int] | None = None
        self._handles: dict[int, h5py.File] = {}
        self._pid = os.getpid()

    @property
    def num_classes(self) -> int:
        """Number of foreground classes C."""
        return len(self.class_names)

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard, in order."""
        return [entry.rows for entry in self.manifest.shards]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def locate(self, i: int) -> tuple[int, int]:
        """Shard number and row in it of row `i` of the set."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        return shard, int(i - self._starts[shard])

    def rows_of(self, shard: int) -> range:
        """Rows of the set that lie in shard number `shard`."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def index_of(self, image_id: str) -> int:
        """Row of an id. Raises UserError when the set has no such image."""
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.ids)}
        if image_id not in self._rows:
            raise UserError(f"{self.path}: no image {image_id!r}",
                            fix="take shards that were made from the same images")
        return self._rows[image_id]

    def has(self, name: str) -> bool:
        """Whether any row carries payload `name` ("image", "mask", "seed", "confidence")."""
        return any(name in index.payloads for index in self._indexes)

    def blob(self, name: str, i: int) -> bytes:
        """Bytes of payload `name` of row `i`, checksum compared; empty where the row has none.

        Raises:
            UserError: the stored bytes are damaged.
        """
        if name not in PAYLOADS:
            raise ValueError(f"payload {name!r} is not one of {PAYLOADS}")
        shard, row = self.locate(i)
        index = self._indexes[shard]
        if name not in index.payloads:
            return b""
        start, stop = index.offsets[name][row:row + 2]
        data = _read(self._open(shard)[f"{name}/bytes"], int(start), int(stop))
        if data is None or zlib.crc32(data) != index.crc32[row, index.payloads.index(name)]:
            raise UserError(f"{self._file(shard)}: {name} of {self.ids[i]!r} is damaged",
                            fix=_RESTORE)
        return data

    def image(self, i: int) -> np.ndarray:
        """Image of row `i`, RGB uint8 `[H, W, 3]`."""
        return decode_image(self.blob("image", i), self._item(i))

    def mask(self, i: int) -> np.ndarray | None:
        """Label map of row `i`, uint8 `[H, W]` (255 = ignore); None where there is none."""
        data = self.blob("mask", i)
        return decode_mask(data, self._item(i)) if data else None

    def close(self) -> None:
        """Close this process's file handles; they open again when needed."""
        for handle in self._handles.values():
            handle.close()
        self._handles = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}, "_pid": -1}

    def _item(self, i: int) -> str:
        return f"{self._file(self.locate(i)[0])}: {self.ids[i]!r}"

    def _file(self, shard: int) -> Path:
        return self.path / self.manifest.shards[shard].file

    def _open(self, shard: int) -> h5py.File:
        if self._pid != os.getpid():  # forked: leave the parent's handles alone
            self._handles, self._pid = {}, os.getpid()
        if shard not in self._handles:
            # Finished shards never change, and some cluster file systems refuse locks.
            self._handles[shard] = h5py.File(self._file(shard), "r", locking=False)
        return self._handles[shard]

    def _load(self, entry: ShardEntry, check: str) -> _Index:
        path = self.path / entry.file
        if not path.is_file():
            raise UserError(f"{path}: shard is missing", fix=_RESTORE)
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(f"{path}: {size} bytes, the manifest says {entry.bytes}", fix=_RESTORE)
        if check == "full" and sha256_file(path) != entry.sha256:
            raise UserError(f"{path}: content changed since it was written (sha256 differs)",
                            fix=_RESTORE)
        try:
            with h5py.File(path, "r", locking=False) as file:
                return _Index(file, entry, self.class_names)
        except (OSError, KeyError, ValueError, IndexError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a readable shard ({error})", fix=_RESTORE) from error
