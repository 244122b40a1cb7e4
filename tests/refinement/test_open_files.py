"""Sets of many shards where the system grants few open files, as it usually does."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.open_files import Descriptors
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import from_system
from more.evaluation.score import evaluate
from more.export import export_masks
from more.inference.localize import Request, localize
from more.refinement.refine import refine
from tests.data.sets import NAMES
from tests.inference.test_localize import make_run
from tests.refinement.sets import FAST, INLINE


@contextmanager
def files_granted(limit: int | None = None, more: int = 24):
    """As after `ulimit -n LIMIT`; without one, `more` files than are open now, and a share for the
    sets, which may keep a quarter of all.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit or (highest + more) * 4 // 3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def thin_set(folder: Path, shards: int) -> Path:
    """Images of noise with masks, one in each shard."""
    folder.mkdir(parents=True)
    entries = []
    for k in range(shards):
        pixels = np.random.default_rng(k).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        mask = np.zeros((24, 24), np.uint8)
        mask[6:] = k % 3 + 1
        with ShardWriter(folder / shard_name(k), "images", NAMES) as writer:
            writer.add(f"image_{k}", np.eye(3, dtype=int)[k % 3], (24, 24),
                       image=cv2.imencode(".png", pixels)[1].tobytes(), mask=encode_mask(mask))
        entries.append(writer.entry)
    write_manifest(folder, "images", NAMES, entries, {})
    return folder


def every_command_ends_well(root: Path, data: Path, shards: int) -> None:
    run, seeds, masks = make_run(root / "run"), root / "seeds", root / "masks"
    tallies = [localize(run, data, seeds, Request(("cam",), "true", 0)),
               refine(seeds, data, masks, FAST, rows_per_shard=1, progress=False, **INLINE),
               export_masks(masks, root / "png", progress=False),
               export_masks(masks, root / "training", "training", progress=False, data=data)]
    assert [(tally.done, tally.failures) for tally in tallies] == [(shards, [])] * 4
    for path in (seeds, masks):
        assert len(ShardSet(path).shard_rows) == shards
        assert evaluate(path, data, workers=16, progress=False).images == shards


def test_many_shards_need_few_open_files(tmp_path):
    data = thin_set(tmp_path / "data", 48)
    with files_granted():
        every_command_ends_well(tmp_path, data, 48)


@pytest.mark.slow
def test_1000_shards_with_ulimit_256(tmp_path):
    data = thin_set(tmp_path / "data", 1000)
    with files_granted(256):
        every_command_ends_well(tmp_path, data, 1000)


def test_descriptors_of_all_sets_and_threads_are_bounded_together(tmp_path):
    """Several sets share one bound; a file that somebody reads stays open, and closes after."""
    paths = [tmp_path / f"{k}" for k in range(9)]
    for path in paths:
        path.write_bytes(path.name.encode())
    pool, before = Descriptors(limit=2), len(os.listdir("/proc/self/fd"))
    for k, path in enumerate(paths):
        with pool.reading(k, path):
            pass
    assert len(os.listdir("/proc/self/fd")) == before + 2
    with pool.reading(0, paths[0]) as first, pool.reading(1, paths[1]), pool.reading(2, paths[2]):
        pool.close(0)
        assert os.pread(first, 9, 0) == b"0"
    assert len(os.listdir("/proc/self/fd")) == before + 2
    for k in range(9):
        pool.forget(k)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_bound_follows_what_the_system_grants():
    with files_granted(256):
        assert Descriptors().limit == 64


def test_too_many_open_files_is_a_sentence_with_the_way_out(tmp_path):
    """Also where HDF5 says it: nobody shall restore a sound shard from a copy."""
    data = thin_set(tmp_path / "data", 1)
    held = []
    with files_granted(), pytest.raises(OSError, match="Too many open files") as caught:
        try:
            while True:
                held.append(os.open(data, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        os.close(held.pop())  # one for the manifest, which is read and closed first
        with open(data / "manifest.json"):
            ShardSet(data)
    for descriptor in held:
        os.close(descriptor)
    assert "ulimit -n" in str(from_system(caught.value))


def test_hdf5_without_descriptors_is_not_a_damaged_shard(tmp_path, monkeypatch):
    data = thin_set(tmp_path / "data", 1)

    def full(*arguments, **options):
        raise OSError(errno.EMFILE, "Unable to open file (errno = 24)")

    monkeypatch.setattr("more.data.shards.index.h5py.File", full)
    with pytest.raises(OSError, match="Too many open files") as caught:
        ShardSet(data)
    assert "shard-00000.h5" in str(caught.value) and "ulimit" in str(from_system(caught.value))
