"""What frozen blocks make of views of images, computed once and kept in a folder.

A store is a folder named by a hash of all that decides its content: frozen weights, images, views,
precision. Its rows are the views of the images, view after view: row `v · n + i` is view v of image
number i. Files (NumPy's format, mapped into memory, so that all processes of a machine share what
they read): `tokens.npy` float16 `[rows, T, D]`, `places.npy` float64 `[rows, 9]` (window and box of
the view, see `more.data.transforms.View`), `sums.npy` int64 `[rows]` (crc32 of tokens and places,
plus 2^32 in rows that are finished), and `store.json` once all rows are there.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from torch.utils.data import Dataset

from more.data.labels import OUTSIDE, Labels
from more.data.sampler import SampleKey
from more.data.shards.format import make_folder, sha256_bytes, to_json, write_atomic
from more.data.transforms import labels_of_view, thinned
from more.errors import UserError

DONE = 1 << 32
RECORD = "store.json"


class TokenStore:
    """A store of tokens; several processes may fill different rows of it at a time.

    Args:
        folder: what holds stores; made when missing.
        facts: JSON values that decide the content.
        rows: views of all images.
        shape: (T, D) of a view's tokens.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], rows: int, shape: tuple[int, int]):
        self.facts = {**facts, "rows": rows, "shape": list(shape)}
        self.path = folder / sha256_bytes(to_json(self.facts))[:16]
        self.rows, self.shape = rows, shape
        self._maps: dict[str, np.ndarray] = {}
        self._process = 0

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.rows * row_bytes(self.shape)

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return (self.path / RECORD).is_file()

    def create(self) -> None:
        """Make the files, or keep those of an interrupted filling; one process calls it.

        Raises:
            UserError: too little space.
        """
        make_folder(self.path)
        kinds = {"tokens": (np.float16, self.shape), "places": (np.float64, (9,)),
                 "sums": (np.int64, ())}
        for name, (kind, shape) in kinds.items():
            file = self.path / f"{name}.npy"
            if file.is_file():
                continue
            new = file.with_suffix(".tmp.npy")
            try:
                size = open_memmap(new, "w+", kind, (self.rows, *shape)).nbytes
                with open(new, "r+b") as opened:  # a hole would end in SIGBUS on a full disk
                    os.posix_fallocate(opened.fileno(), 0, os.path.getsize(new))
            except OSError as error:
                new.unlink(missing_ok=True)
                raise UserError(f"{file}: {self.rows} views need {size:,} bytes ({error.strerror})",
                                "free some space, lower segment.cache_gb or segment.views, or "
                                "give another folder as segment.cache") from error
            new.rename(file)

    def missing(self, rows: range) -> list[int]:
        """Those of `rows` that are not there yet, or not as they were written."""
        sums = self._map("sums")
        return [row for row in rows if not sums[row] or sums[row] != self._sum(row)]

    def write(self, row: int, tokens: np.ndarray, place: np.ndarray) -> None:
        """Fill a row: tokens `[T, D]`, place `[9]`."""
        self._map("tokens")[row], self._map("places")[row] = tokens, place
        self._map("sums")[row] = self._sum(row)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens float16 `[T, D]` and place `[9]` of a row.

        Raises:
            UserError: it is damaged.
        """
        tokens, place = np.array(self._map("tokens")[row]), np.array(self._map("places")[row])
        if self._map("sums")[row] != _sum(tokens, place):
            raise UserError(f"{self.path}: row {row} is damaged",
                            "delete this folder; the same command computes it again")
        return tokens, place

    def finish(self) -> None:
        """All rows are there and flushed; one process calls it."""
        write_atomic(self.path / RECORD, to_json(self.facts))

    def flush(self) -> None:
        """Bring this process's rows to the disk."""
        for held in self._maps.values():
            held.flush()

    def _sum(self, row: int) -> int:
        return _sum(self._map("tokens")[row], self._map("places")[row])

    def _map(self, name: str) -> np.ndarray:
        if self._process != os.getpid():  # loader processes open their own
            self._maps, self._process = {}, os.getpid()
        if name not in self._maps:
            mode = "r" if self.complete else "r+"
            self._maps[name] = open_memmap(self.path / f"{name}.npy", mode)
        return self._maps[name]


def row_bytes(shape: tuple[int, int]) -> int:
    """Bytes of one view in a store."""
    return 2 * shape[0] * shape[1] + 9 * 8 + 8


def stores(folder: Path) -> list[dict[str, Any]]:
    """The facts of the finished stores in a folder."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"*/{RECORD}"))]


def _sum(tokens: np.ndarray, place: np.ndarray) -> int:
    return zlib.crc32(place, zlib.crc32(tokens)) + DONE


class TokenDataset(Dataset):
    """Views of images as tokens, with their labels.

    Args:
        store: complete.
        views: of each image; epoch e shows view e % views.
        labels: of the images.
        tags: `[n, C]`.
        size, stride: side of a view in pixels, and how many of them one label stands for.
    """

    def __init__(self, store: TokenStore, views: int, labels: Labels, tags: np.ndarray,
                 size: int, stride: int):
        self.store, self.views, self.labels, self.tags = store, views, labels, tags
        self.size, self.stride = size, stride

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """tokens float16 `[T,D]`, labels uint8 `[s,s,2]` (see `Labels`), tags float32 `[C]`,
        indices and slots as int."""
        tokens, place = self.store.read(key.epoch % self.views * len(self) + key.index)
        labels = labels_of_view(self.labels[key.index], place[:5], place[5:], self.size, OUTSIDE)
        return {"tokens": tokens, "labels": thinned(labels, self.stride),
                "tags": self.tags[key.index].astype(np.float32), "indices": key.index,
                "slots": key.slot}
