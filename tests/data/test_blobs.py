"""Bytes read straight from a shard file: the same as HDF5 gives, few files open."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.shards.index import BlobMap
from more.data.shards.open_files import Descriptors, OpenFiles
from more.data.shards.reader import ShardSet
from tests.data.sets import small_set

CHUNK = 100


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A dataset of several chunks in file order and one whose chunks are scattered."""
    path = tmp_path_factory.mktemp("blobs") / "x.h5"
    data = np.random.default_rng(0).integers(0, 256, 950, dtype=np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("plain", data=data, chunks=(CHUNK,), fletcher32=True)
        mixed = file.create_dataset("mixed", (950,), np.uint8, chunks=(CHUNK,), fletcher32=True)
        for chunk in (3, 0, 9, 1, 2, 8, 5, 4, 7, 6):
            mixed[chunk * CHUNK:(chunk + 1) * CHUNK] = data[chunk * CHUNK:(chunk + 1) * CHUNK]
            file.flush()
        file.create_dataset("other", data=data, chunks=(CHUNK,), compression="gzip")
        file.create_dataset("whole", data=data)
        file.create_dataset("holes", (950,), np.uint8, chunks=(CHUNK,), fletcher32=True)
        file.create_dataset("empty", data=data[:0])
    return path, data


@given(st.integers(0, 950), st.integers(0, 950))
@settings(max_examples=100, deadline=None)
def test_any_stretch_is_what_hdf5_reads(stored, first, second):
    path, data = stored
    start, stop = min(first, second), max(first, second)
    files = OpenFiles()
    with h5py.File(path) as file:
        maps = [BlobMap(file[name]) for name in ("plain", "mixed")]
    for blob in maps:
        with files.reading(path) as opened:
            assert blob.read(opened, start, stop) == data[start:stop].tobytes()
    files.close()


def test_other_storage_is_refused(stored):
    with h5py.File(stored[0]) as file:
        for name in ("other", "whole"):
            with pytest.raises(ValueError, match="not stored as format 1 says"):
                BlobMap(file[name])
        with pytest.raises(ValueError, match="lacks 10 chunks"):
            BlobMap(file["holes"])
        assert BlobMap(file["empty"]).read(-1, 0, 0) == b""


def test_few_files_stay_open(tmp_path):
    """A set of a thousand shards must not exceed a process's limit of open files."""
    shards = ShardSet(small_set(tmp_path, shards=9, rows=2))
    shards._files = OpenFiles(Descriptors(limit=4))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for row in shards:
            shards.image(row)
            assert len(shards._files) <= 4
    assert len(os.listdir("/proc/self/fd")) == before + 4
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_closed_or_taken_by_others_is_replaced(tmp_path):
    shards = ShardSet(small_set(tmp_path / "set"))
    expected = shards.blob("image", 0)
    (tmp_path / "other").write_bytes(bytes(10**6))
    for taken in (False, True):
        with shards._files.reading(shards.path / "shard-00000.h5") as file:
            pass
        os.close(file)
        other = os.open(tmp_path / "other", os.O_RDONLY) if taken else None
        assert other in (None, file)
        assert shards.blob("image", 0) == expected
        if other is not None:
            os.close(other)  # still open, hence not closed by us
