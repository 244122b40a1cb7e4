"""The store of tokens: what was written comes back, or it says why not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from more.config.schema import TokensConfig
from more.data.batch_order import GlobalBatchSampler, SampleKey
from more.data.dataset import Masks, TokenDataset, TrainDataset
from more.data.loader import Reading, make_train_loader
from more.data.mask_labels import match_masks
from more.data.shards.reader import ShardSet
from more.data.token_store import RECORD, TokenStore, row_bytes
from more.data.transforms import TrainTransform, sample_generator
from more.errors import UserError
from more.train.frozen_tokens import rank_rows, views_that_fit
from tests.data.sets import small_set

ROWS, SHAPE = 12, (5, 8)
FACTS = {"weights": "a", "views": {"crop": 32}}


def content(row: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and place of a row."""
    rng = np.random.default_rng(row)
    return rng.normal(size=shape).astype(np.float16), rng.uniform(0, 99, 9)


def filled(folder: Path, rows=range(ROWS), shape: tuple[int, ...] = SHAPE) -> TokenStore:
    """A store with some rows; complete if these are all."""
    store = TokenStore(folder, FACTS, ROWS, shape)
    store.create()
    for row in rows:
        store.write(row, *content(row, shape))
    store.flush()
    if len(rows) == ROWS:
        store.finish()
    return store


@pytest.mark.parametrize("shape", [SHAPE, (2, 5, 8)])
def test_what_was_written_comes_back(tmp_path, shape):
    wrote = filled(tmp_path, shape=shape)
    for store in (wrote, TokenStore(tmp_path, FACTS, ROWS, shape)):
        assert store.complete and store.missing(range(ROWS)) == []
        for row in range(ROWS):
            tokens, place = store.read(row)
            assert tokens.dtype == np.float16 and place.dtype == np.float64
            assert all(map(np.array_equal, (tokens, place), content(row, shape)))
    assert json.loads((wrote.path / RECORD).read_text()) == {
        **FACTS, "rows": ROWS, "shape": list(shape)}


def test_its_size_is_that_of_its_files(tmp_path):
    store = filled(tmp_path)
    files = sum(path.stat().st_size for path in store.path.glob("*.npy"))
    assert store.bytes <= files <= store.bytes + 3 * 128, "NumPy's headers"
    blocks = sum(path.stat().st_blocks * 512 for path in store.path.glob("*.npy"))
    assert blocks >= store.bytes, "no holes: a full disk shows at the start"


def test_a_finished_store_is_not_written_to(tmp_path):
    store = TokenStore(tmp_path, FACTS, ROWS, SHAPE)
    filled(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        store.write(0, *content(1))


@pytest.mark.parametrize("file", ["tokens", "places", "sums"])
def test_a_flipped_byte_is_found(tmp_path, file):
    path = filled(tmp_path).path / f"{file}.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # in the last row
    path.write_bytes(data)
    store = TokenStore(tmp_path, FACTS, ROWS, SHAPE)
    store.read(ROWS - 2)
    with pytest.raises(UserError, match=f"row {ROWS - 1} is damaged") as caught:
        store.read(ROWS - 1)
    assert str(store.path) in caught.value.message and "delete this folder" in caught.value.fix


def test_an_interrupted_filling_lacks_what_was_not_written(tmp_path):
    done = [0, 1, 5, 11]
    wrote = filled(tmp_path, rows=done)
    assert not wrote.complete
    for store in (wrote, TokenStore(tmp_path, FACTS, ROWS, SHAPE)):
        store.create()  # keeps what is there
        assert store.missing(range(ROWS)) == [row for row in range(ROWS) if row not in done]
        assert store.missing(range(4, 7)) == [4, 6]
        assert np.array_equal(store.read(5)[0], content(5)[0])
        with pytest.raises(UserError, match="row 6 is damaged"):
            store.read(6)


def test_a_half_written_row_is_missing(tmp_path):
    """Killed between the tokens and their sum, or a power cut kept one of them only."""
    store = filled(tmp_path, rows=range(4))
    store._map("tokens")[2, 3, 3] += 1
    store._map("places")[1, 8] += 1
    store.flush()
    again = TokenStore(tmp_path, FACTS, ROWS, SHAPE)
    assert again.missing(range(4)) == [1, 2]
    again.write(2, *content(2))
    assert again.missing(range(4)) == [1]


def test_all_zero_rows_are_there_once_they_are_written(tmp_path):
    store = filled(tmp_path, rows=[])
    store.write(3, np.zeros(SHAPE, np.float16), np.zeros(9))
    assert 3 not in store.missing(range(ROWS)) and not store.read(3)[0].any()


@pytest.mark.parametrize("which", [1, 2, 3])
def test_too_little_room_leaves_no_part_of_a_file(tmp_path, monkeypatch, which):
    calls, reserve = [], os.posix_fallocate

    def full(descriptor, offset, length):
        calls.append(length)
        if len(calls) == which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = TokenStore(tmp_path, FACTS, ROWS, SHAPE)
    with pytest.raises(UserError, match="No space left") as caught:
        store.create()
    name, size = [("tokens", ROWS * 80), ("places", ROWS * 72), ("sums", ROWS * 8)][which - 1]
    assert f"{name}.npy: {ROWS} views need {size:,} bytes" in caught.value.message
    assert "tokens.gb" in caught.value.fix and "tokens.folder" in caught.value.fix
    made = sorted(path.name for path in store.path.iterdir())
    assert made == sorted(["tokens.npy", "places.npy", "sums.npy"][:which - 1])
    store.create()  # there is room again
    assert store.missing(range(ROWS)) == list(range(ROWS))


@pytest.mark.parametrize("changed", [
    {"facts": {**FACTS, "weights": "b"}}, {"facts": {**FACTS, "views": {"crop": 40}}},
    {"rows": ROWS + 1}, {"shape": (6, 8)}, {"shape": (1, 5, 8)}])
def test_other_facts_lie_in_another_folder(tmp_path, changed):
    options = {"facts": FACTS, "rows": ROWS, "shape": SHAPE}
    one, same, other = (TokenStore(tmp_path, **{**options, **change})
                        for change in ({}, {}, changed))
    assert one.path == same.path != other.path and other.path.parent == tmp_path


def test_views_are_as_many_as_fit():
    shape = (53, 32)
    each = 24 * row_bytes(shape)
    for room, views in ((0, 0), (each - 1, 0), (each, 1), (3 * each - 1, 2), (3 * each, 3),
                        (4 * each, 4), (100 * each, 4)):
        # A little more, for the number of gigabytes is rounded.
        assert views_that_fit(TokensConfig(views=4, gb=(room + 0.01) / 1e9), 24, shape) == views
    twice = (2, *shape)
    assert row_bytes(twice) == 2 * row_bytes(shape) - 80
    assert views_that_fit(TokensConfig(views=4, gb=3 * each / 1e9), 24, twice) == 1


SIZE, VIEWS = 32, 2


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """A set with masks, and a store of two views of its images: tokens tell the row."""
    images = ShardSet(small_set(tmp_path_factory.mktemp("set") / "set"))
    transform, count = TrainTransform(SIZE, "coco"), len(images)
    store = TokenStore(tmp_path_factory.mktemp("store"), {}, VIEWS * count, (2, 3))
    store.create()
    for row in range(VIEWS * count):
        view = transform(images.image(row % count), sample_generator(3, row // count, row % count))
        store.write(row, np.full((2, 3), row, np.float16), np.concatenate([view.window, view.box]))
    store.flush()
    store.finish()
    return images, transform, store


def loader(views, kept: bool, workers: int = 0, stride: int = 4, **options):
    """The same views with their labels, by way of the store or of the images."""
    images, transform, store = views
    labels = match_masks(images, images)[0]
    tokens = TokenDataset(store, VIEWS, labels, images.tags, SIZE, stride) if kept else None
    return list(make_train_loader(
        images, transform, GlobalBatchSampler(len(images), 4, 3), masks=Masks(labels, stride),
        views=VIEWS, tokens=tokens, reading=Reading(workers), stop_step=10, **options))


@pytest.mark.parametrize(("workers", "stride"), [(0, 4), (2, 4), (0, 1), (0, 5)])
def test_stored_views_have_the_labels_and_tags_of_the_views_themselves(views, workers, stride):
    """Through three epochs, so that views come again."""
    count, epochs = len(views[0]), set()
    whole, kept = loader(views, False, 0, stride), loader(views, True, workers, stride)
    assert len(whole) == len(kept) == 10
    for step, (image, token) in enumerate(zip(whole, kept, strict=True)):
        assert set(token) == {"tokens", "labels", "tags", "indices", "slots"}
        for key in ("labels", "tags", "indices", "slots"):
            assert token[key].dtype == image[key].dtype and (token[key] == image[key]).all(), key
        epoch = step * 4 // 12  # 12 of 15 images an epoch: the incomplete batch is dropped
        epochs.add(epoch)
        rows = epoch % VIEWS * count + token["indices"]
        assert (token["tokens"] == rows[:, None, None].half()).all()
    assert epochs == {0, 1, 2, 3}


def test_ranks_share_the_stored_views(views):
    whole = loader(views, True)
    parts = [loader(views, True, rank=rank, world=2, micro_batch=1) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        rows = [part["tokens"][0, 0, 0] for rank in parts for part in rank[2 * step:2 * step + 2]]
        assert rows == batch["tokens"][:, 0, 0].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_tokens_come_along_with_their_images(views, workers):
    """What stage one takes: pixels for the other scales, tokens for the view itself."""
    images, transform, store = views
    plain, with_tokens = (list(make_train_loader(
        images, transform, GlobalBatchSampler(15, 5, 3), views=VIEWS, store=one,
        reading=Reading(workers), stop_step=10)) for one in (None, store))
    for step, (before, batch) in enumerate(zip(plain, with_tokens, strict=True)):
        assert all((batch[key] == value).all() for key, value in before.items())
        rows = step // 3 % VIEWS * 15 + batch["indices"]
        assert (batch["tokens"] == rows[:, None, None].half()).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_row_stops_the_training_with_its_name(views, tmp_path, workers):
    images, transform, store = views
    copy = TokenStore(tmp_path, {}, store.rows, store.shape)
    copy.create()
    for row in range(store.rows):
        copy.write(row, *store.read(row))
    copy._map("tokens")[7] += 1
    copy.flush()
    copy.finish()
    with pytest.raises(UserError, match="row 7 is damaged"):
        loader((images, transform, copy), True, workers)


def test_a_dataset_of_views_takes_them_in_turn(views):
    images, transform, store = views
    dataset = TrainDataset(images, transform, 3, views=VIEWS, store=store)
    found = [dataset[SampleKey(4, 0, epoch)] for epoch in range(4)]
    assert [sample["tokens"][0, 0] for sample in found] == [4, 19, 4, 19]
    assert np.array_equal(found[0]["images"], found[2]["images"])
    assert not np.array_equal(found[0]["images"], found[1]["images"])


def test_a_disk_that_takes_no_file_at_all_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("more.data.token_store.open_memmap", full)
    with pytest.raises(UserError, match="views need"):
        TokenStore(tmp_path, FACTS, ROWS, SHAPE).create()


@pytest.mark.parametrize(("rows", "world"), [(12, 4), (13, 4), (3, 4), (1_000_003, 7)])
def test_the_uneven_leftover_of_the_rows_has_one_rank_each(rows, world):
    stretches = [rank_rows(rows, rank, world) for rank in range(world)]
    assert [row for own in stretches for row in own] == list(range(rows))
    assert max(map(len, stretches)) - min(map(len, stretches)) <= 1
