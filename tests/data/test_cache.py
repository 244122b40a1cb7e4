"""The local cache: copied once, verified, and no trap when the disk is full."""

from __future__ import annotations

import errno
import multiprocessing
import os

import pytest

from more.data.shards import cache as module
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data.sets import flip_a_byte, small_set


def _names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_shards_are_copied_when_first_read(tmp_path):
    source = small_set(tmp_path / "set")
    shards, local = ShardSet(source, cache=tmp_path / "local"), tmp_path / "local"
    assert _names(local) == []
    shards.image(7)
    assert _names(local) == [f"{shards.manifest.shards[1].sha256}.h5"]
    expected = [ShardSet(source).blob("image", row) for row in range(15)]
    assert [shards.blob("image", row) for row in shards] == expected and len(_names(local)) == 3
    again = ShardSet(source, cache=local)
    for path in source.glob("*.h5"):
        path.rename(path.with_suffix(".gone"))
    assert [again.blob("image", row) for row in again] == expected


def test_a_changed_source_is_refused_and_leaves_nothing(tmp_path):
    copy = flip_a_byte(small_set(tmp_path / "set"), tmp_path / "copy")
    shards = ShardSet(copy, cache=tmp_path / "local")
    with pytest.raises(UserError, match="shard-00000.h5: content changed"):
        shards.image(0)
    assert _names(tmp_path / "local") == [] and shards.image(5) is not None


def _read(path, local, queue):
    shards = ShardSet(path, cache=local)
    queue.put(sum(int(shards.image(row).sum()) for row in shards))


def test_processes_of_a_node_share_one_copy(tmp_path):
    source = small_set(tmp_path / "set")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    readers = [context.Process(target=_read, args=(source, tmp_path / "local", queue))
               for _ in range(3)]
    for reader in readers:
        reader.start()
    assert len({queue.get(timeout=60) for _ in readers}) == 1
    for reader in readers:
        reader.join()
    assert len(_names(tmp_path / "local")) == 3


def test_a_full_disk_is_said_and_read_around(tmp_path, monkeypatch, capfd):
    shards = ShardSet(small_set(tmp_path / "set"), cache=tmp_path / "local")
    expected = ShardSet(tmp_path / "set").blob("image", 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_copy", full)
    assert shards.blob("image", 0) == expected and shards.blob("image", 9)
    said = capfd.readouterr().err
    assert said.count("is full") == 1 and str(tmp_path / "set") in said


def test_a_damaged_copy_is_named(tmp_path):
    shards = ShardSet(small_set(tmp_path / "set"), cache=tmp_path / "local")
    shards.image(0)
    copy = tmp_path / "local" / _names(tmp_path / "local")[0]
    data = bytearray(copy.read_bytes())
    data[data.index(shards.blob("image", 0)) + 50] ^= 1
    copy.write_bytes(data)
    with pytest.raises(UserError, match=f"{copy.name}: image of 'image_0' is damaged"):
        ShardSet(tmp_path / "set", cache=tmp_path / "local").image(0)
