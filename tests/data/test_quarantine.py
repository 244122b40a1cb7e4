"""Fault 16: damaged images stop the start, or are left out by name up to a limit."""

from __future__ import annotations

import numpy as np
import pytest

from more.commands.train import _open_sets, _Paths
from more.config.load import load_config
from more.data.shards.format import shard_name
from more.data.shards.quarantine import open_checked
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data.sets import small_set


def damage(folder, rows, payload="image"):
    """One wrong bit in the payload of each row."""
    shards = ShardSet(folder)
    for row in rows:
        path = folder / shards.manifest.shards[shards.locate(row)[0]].file
        data = bytearray(path.read_bytes())
        data[bytes(data).index(shards.blob(payload, row)) + 20] ^= 1
        path.write_bytes(data)


def test_a_sound_set_loses_nothing(tmp_path):
    for share in (0.0, 0.5):
        shards, out = open_checked(small_set(tmp_path / str(share)), quarantine=share)
        assert len(shards) == 15 and out == []


def test_by_default_a_damaged_image_stops(tmp_path):
    damage(small_set(tmp_path), [7])
    with pytest.raises(UserError, match="shard-00001.h5: content changed"):
        open_checked(tmp_path)
    for rank in range(3):  # each rank hashes its share: exactly one of them sees it
        if rank == 1:
            with pytest.raises(UserError, match="shard-00001"):
                open_checked(tmp_path, share=(rank, 3))
        else:
            open_checked(tmp_path, share=(rank, 3))


def test_quarantine_leaves_out_up_to_its_limit(tmp_path):
    whole = ShardSet(small_set(tmp_path))
    sound = {row: (whole.ids[row], whole.blob("image", row)) for row in range(15)}
    damage(tmp_path, [7])
    damage(tmp_path, [12], "mask")
    shards, out = open_checked(tmp_path, quarantine=0.15)
    assert [(item.file, item.id, item.payload, item.row) for item in out] == [
        ("shard-00001.h5", "image_7", "image", 7), ("shard-00002.h5", "image_12", "mask", 12)]
    left = [row for row in range(15) if row not in (7, 12)]
    assert shards.ids == [sound[row][0] for row in left] and shards.shard_rows == [5, 4, 4]
    assert [shards.blob("image", row) for row in shards] == [sound[row][1] for row in left]
    assert np.array_equal(shards.tags, whole.tags[left])
    assert np.array_equal(shards.sizes, whole.sizes[left])
    assert shards.mask(12).shape == tuple(shards.sizes[12]) and shards.index_of("image_8") == 7
    with pytest.raises(UserError, match="no image 'image_7'"):
        shards.index_of("image_7")
    with pytest.raises(UserError, match=r"2 of 15 images are damaged \(shard-00001.h5 'image_7'"):
        open_checked(tmp_path, quarantine=0.1)


def test_damage_outside_the_images_stops_all_the_same(tmp_path):
    small_set(tmp_path)
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"x" if path.read_bytes()[-1:] != b"x" else b"y")
    with pytest.raises(UserError, match="shard-00000.h5"):
        open_checked(tmp_path, quarantine=0.5)


@pytest.mark.parametrize("what", ["train", "val", "masks"])
def test_the_ranks_of_a_training_hash_all_shards_between_them(tmp_path, what):
    """Each shard by exactly one rank: not all by each, nor those of rank 0 alone."""
    sets = {name: small_set(tmp_path / name, shards=5, rows=1)
            for name in ("train", "val", "masks")}
    settings = load_config(None, ["model.num_classes=3", "train.global_batch=1"], stage=2)
    paths = _Paths(tmp_path / "recipe.py", sets["train"], sets["val"], sets["masks"], None,
                   tmp_path / "run", "auto", ())

    def refused(rank: int) -> bool:
        try:
            _open_sets(settings, paths, (rank, 2))
        except UserError as error:
            assert "sha256 differs" in error.message and str(sets[what]) in error.message
            return True
        return False

    assert not refused(0) and not refused(1)
    for number in range(5):
        path = sets[what] / shard_name(number)
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert [rank for rank in range(2) if refused(rank)] == [number % 2]
        path.write_bytes(sound)
