"""Writing one shard: to a temporary file, which is read back and then renamed."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from more.data.shards.format import (
    CHUNK_BYTES,
    FORMAT,
    KINDS,
    PAYLOADS,
    check_id,
    commit,
    sha256_file,
    temporary_path,
    write_file,
)
from more.data.shards.manifest import ShardEntry, write_sidecar
from more.errors import UserError


class ShardWriter:
    """Collects the rows of one shard and writes them on `close`.

    Use as a context manager; leaving it with an exception writes nothing. `close` writes under a
    temporary name, reads everything back, renames, and leaves the entry file beside the shard.

    Args:
        path: final name, `shard-00000.h5` in an existing folder.
        kind: "images", "seeds" or "masks".
        class_names: foreground classes in order.
        provenance: stored in the entry file and compared by `finished_shards`.
    """

    def __init__(self, path: Path | str, kind: str, class_names: list[str],
                 provenance: dict[str, Any] | None = None):
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {KINDS}")
        self.path, self.kind = Path(path), kind
        self.class_names, self.provenance = list(class_names), provenance or {}
        self.entry: ShardEntry | None = None
        self._ids: dict[str, None] = {}
        self._tags: list[np.ndarray] = []
        self._sizes: list[tuple[int, int]] = []
        self._files: list[bytes] = []
        self._payloads: dict[str, list[bytes]] = {name: [] for name in PAYLOADS}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None and self.entry is None:
            self.close()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, image_id: str, tags: Any, size: tuple[int, int], *,
            image: bytes | None = None, mask: bytes | None = None,
            seed: bytes | None = None, confidence: bytes | None = None,
            file: str = "") -> None:
        """Append a row.

        Args:
            image_id: unique in the shard, usable as a file name.
            tags: `[C]` of 0 and 1.
            size: height and width of the image in pixels.
            image, mask, seed, confidence: encoded bytes, or None.
            file: the image's file name in its data set, with folders; "" where it has none.

        Raises:
            UserError: unusable or repeated id.
            ValueError: wrong number of tags or an impossible size.
        """
        check_id(image_id)
        if image_id in self._ids:
            raise UserError(f"id {image_id!r} comes twice", fix="remove one of the two")
        row = np.asarray(tags, np.uint8)
        if row.shape != (len(self.class_names),) or row.max(initial=0) > 1:
            raise ValueError(f"{image_id}: tags are {len(self.class_names)} zeros and ones")
        if min(size) < 1:
            raise ValueError(f"{image_id}: size {size}")
        self._ids[image_id] = None
        self._tags.append(row)
        self._files.append(file.encode("utf-8", "replace"))
        self._sizes.append((int(size[0]), int(size[1])))
        for name, data in zip(PAYLOADS, (image, mask, seed, confidence), strict=True):
            self._payloads[name].append(bytes(data or b""))

    def close(self) -> ShardEntry:
        """Write, verify and rename the file.

        Returns:
            The shard's entry for the manifest.

        Raises:
            UserError: no row was added, or the file does not read back as written (a bad disk).
        """
        if self.entry is not None:
            return self.entry
        if not self._ids:
            raise UserError(f"{self.path}: a shard needs at least one row", fix="check the list")
        temporary = temporary_path(self.path)
        try:
            self._write(temporary)
            self._read_back(temporary)
            entry = ShardEntry(self.path.name, len(self), temporary.stat().st_size,
                               sha256_file(temporary))
            commit(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        write_sidecar(self.path, entry, self.provenance)
        self.entry = entry
        return entry

    def _present(self) -> list[str]:
        return [name for name in PAYLOADS if any(self._payloads[name])]

    def _write(self, path: Path) -> None:
        ids = [image_id.encode("utf-8") for image_id in self._ids]
        text = h5py.string_dtype("utf-8", max(map(len, ids)))
        names = self._present()
        sums = [[zlib.crc32(data) for data in self._payloads[name]] for name in names]
        # In memory first: when the disk is full, HDF5 cannot close a file and crashes the process.
        with h5py.File(str(path), "w", driver="core", backing_store=False) as file:
            file.attrs["format"] = FORMAT
            file.attrs["kind"] = self.kind
            file.attrs["class_names"] = np.array(self.class_names, h5py.string_dtype())
            file.attrs["payloads"] = np.array(names, h5py.string_dtype())
            _dataset(file, "ids", np.array(ids, text))
            _dataset(file, "tags", np.stack(self._tags))
            _dataset(file, "sizes", np.array(self._sizes, np.int32))
            _dataset(file, "crc32", np.array(sums, np.uint32).reshape(len(names), len(ids)).T)
            if any(self._files):  # sets of earlier versions have none
                longest = h5py.string_dtype("utf-8", max(map(len, self._files)))
                _dataset(file, "files", np.array(self._files, longest))
            for name in names:
                lengths = [len(data) for data in self._payloads[name]]
                offsets = np.cumsum([0, *lengths], dtype=np.int64)
                _dataset(file, f"{name}/offsets", offsets)
                joined = np.frombuffer(b"".join(self._payloads[name]), np.uint8)
                _dataset(file, f"{name}/bytes", joined)
            file.flush()
            image = file.id.get_file_image()
        write_file(path, image)

    def _read_back(self, path: Path) -> None:
        """Compare the file with what was to be written (fletcher32 checks the rest)."""
        with h5py.File(path, "r", locking=False) as file:
            same = [text.decode("utf-8") for text in file["ids"][:]] == list(self._ids)
            same &= np.array_equal(file["tags"][:], np.stack(self._tags))
            for name in self._present():
                same &= file[f"{name}/bytes"][:].tobytes() == b"".join(self._payloads[name])
        if not same:
            raise UserError(f"{path}: does not read back as written",
                            fix=f"check the disk that holds {os.path.dirname(path) or '.'}")


def _dataset(file: h5py.File, name: str, array: np.ndarray) -> None:
    """A chunked dataset with fletcher32; chunks of 64 KiB for bytes, one chunk for the rest."""
    array, how = np.ascontiguousarray(array), {}
    if array.size:  # no class or no payload: HDF5 cannot chunk what is empty
        chunks = (min(CHUNK_BYTES, array.size),) if name.endswith("/bytes") else array.shape
        how = {"chunks": chunks, "fletcher32": True}
    # A dataset gets its place in the file when it is flushed. Without this call that is when it is
    # closed, and beside other threads h5py closes late: the same content, in another order.
    file.create_dataset(name, data=array, **how).flush()
