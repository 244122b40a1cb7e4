"""Tokens that frozen blocks make of views of images, computed once and kept in a folder.

A store is a folder named by a hash of everything that decides its content: frozen weights, images,
views, precision. Its rows are the views of the images, view after view: row `v · n + i` is view v
of image number i. Its files are in NumPy's format and mapped into memory, so that all processes of
a machine share what they read:

| file | content |
|---|---|
| `tokens.npy` | float16 `[rows, T, D]`; `[rows, 2, T, D]` with the mirrored view |
| `places.npy` | float64 `[rows, 9]`: window and box of the view, see `more.data.transforms.View` |
| `sums.npy` | int64 `[rows]`: crc32 of tokens and places, plus 2^32 in rows that are finished |
| `store.json` | what decides the content; written once all rows are there |

T is the number of an image's tokens, D their width.
"""

from __future__ import annotations

import os
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from more.data.shards.format import make_folder, sha256_bytes, to_json, write_atomic
from more.errors import UserError

DONE = 1 << 32
RECORD = "store.json"


class TokenStore:
    """A store of tokens; several processes may fill different rows of it at a time.

    Args:
        folder: the folder of all stores; made when missing.
        facts: JSON values that decide the content.
        rows: number of views of all images together.
        shape: (T, D) or (2, T, D), of the tokens of one view.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], rows: int, shape: tuple[int, ...]):
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
        """Make the files, or keep those of an interrupted run; only one process calls it.

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
            new, size = file.with_suffix(".tmp.npy"), self.bytes
            try:
                size = open_memmap(new, "w+", kind, (self.rows, *shape)).nbytes
                with open(new, "r+b") as opened:  # a hole would end in SIGBUS on a full disk
                    os.posix_fallocate(opened.fileno(), 0, os.path.getsize(new))
            except OSError as error:
                new.unlink(missing_ok=True)
                raise UserError(f"{file}: {self.rows} views need {size:,} bytes ({error.strerror})",
                                "free some space, lower tokens.gb or tokens.views, or give "
                                "another folder as tokens.folder") from error
            new.rename(file)

    def missing(self, rows: range) -> list[int]:
        """Rows that are not there yet, or whose checksum is wrong.

        Args:
            rows: the rows to look at.

        Returns:
            Their numbers.
        """
        sums = self._map("sums")
        return [row for row in rows if not sums[row] or sums[row] != self._sum(row)]

    def write(self, row: int, tokens: np.ndarray, place: np.ndarray) -> None:
        """Fill a row.

        Args:
            row: its number.
            tokens: of the store's shape.
            place: `[9]`, window and box of the view.
        """
        self._map("tokens")[row], self._map("places")[row] = tokens, place
        self._map("sums")[row] = self._sum(row)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a row.

        Args:
            row: its number.

        Returns:
            Tokens float16, and window and box of the view, float64 `[9]`.

        Raises:
            UserError: the row is damaged.
        """
        tokens, place = np.array(self._map("tokens")[row]), np.array(self._map("places")[row])
        if self._map("sums")[row] != _sum(tokens, place):
            raise UserError(f"{self.path}: row {row} is damaged",
                            "delete this folder; the same command computes it again")
        return tokens, place

    def finish(self) -> None:
        """Mark the store as complete, once all rows are there and flushed; one process calls it."""
        write_atomic(self.path / RECORD, to_json(self.facts))

    def flush(self) -> None:
        """Write this process's rows to the disk."""
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


def row_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of one view in a store."""
    return 2 * prod(shape) + 9 * 8 + 8


def _sum(tokens: np.ndarray, place: np.ndarray) -> int:
    return zlib.crc32(place, zlib.crc32(tokens)) + DONE
