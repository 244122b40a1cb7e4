"""Loaders: the same samples for any number of workers and ranks; errors keep their text."""

from __future__ import annotations

import pytest
import torch

from more.data.batch_order import GlobalBatchSampler
from more.data.loader import Reading, chunk_sizes, make_eval_loader, make_train_loader
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform
from more.errors import UserError
from tests.data.sets import small_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return ShardSet(small_set(tmp_path_factory.mktemp("set")), kind="images", check="full")


def train(shards, **options):
    options = {"stop_step": 5, **options}
    reading = Reading(options.pop("workers", 0), context=options.pop("context", "fork"))
    plan = GlobalBatchSampler(len(shards), options.pop("global_batch", 4), 3, shards.shard_rows)
    return list(make_train_loader(shards, TrainTransform(16, "coco"), plan, reading=reading,
                                  **options))


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def test_batch_holds_what_it_says(shards):
    batch = train(shards)[0]
    assert batch["images"].shape == (4, 16, 16, 3) and batch["images"].dtype == torch.uint8
    assert batch["jitter"].shape == (4, 13)
    assert batch["tags"].dtype == torch.float32 and batch["box"].shape == (4, 4)
    assert batch["slots"].tolist() == [0, 1, 2, 3]
    expected = torch.from_numpy(shards.tags[batch["indices"].numpy()])
    assert torch.equal(batch["tags"], expected.float())


@pytest.mark.parametrize(("workers", "context"), [
    (2, "fork"), (4, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow),
    pytest.param(4, "spawn", marks=pytest.mark.slow)])
def test_workers_do_not_change_samples(shards, workers, context):
    """Fault 22."""
    alone, together = train(shards), train(shards, workers=workers, context=context)
    assert len(alone) == len(together) == 5
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))


def test_ranks_and_micro_batches_make_up_the_same_steps(shards):
    whole = train(shards)
    for world, micro in ((1, 1), (2, 2), (4, 1), (2, 1)):
        ranks = [train(shards, rank=rank, world=world, micro_batch=micro) for rank in range(world)]
        per_step = 4 // world // micro
        for step, batch in enumerate(whole):
            parts = [part for rank in ranks for part in rank[step * per_step:(step + 1) * per_step]]
            joined = {key: torch.cat([part[key] for part in parts]) for key in batch}
            assert equal(joined, batch)


@pytest.mark.parametrize(("workers", "micro", "accumulation", "megabytes", "expected"), [
    (2, 8, 1, 256, (2, 2)),     # 16 images a chunk, two chunks a worker
    (2, 2, 1, 256, (8, 2)), (1, 64, 1, 256, (1, 2)),
    (2, 8, 40, 256, (2, 16)),   # two global steps of 40 micro-batches: wants 20, memory has 16
    (2, 8, 1, 32, (2, 2)), (2, 8, 1, 1, (1, 1)), (4, 8, 1, 64, (2, 2)), (4, 8, 1, 20, (1, 1))])
def test_chunks_follow_the_batch(workers, micro, accumulation, megabytes, expected):
    """Two global steps ahead, unless the memory for waiting batches is less; never none."""
    reading = Reading(workers, prefetch_mb=megabytes)
    size, ahead = chunk_sizes(reading, micro, accumulation, 512 * 1024)
    assert (size, ahead) == expected
    assert workers * size * ahead * micro <= max(2 * megabytes, workers * micro)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_pixels_hold_until_the_next_batch(shards, micro):
    """Without copies, through many turns of the ring and an incomplete last chunk."""
    plan = GlobalBatchSampler(len(shards), 4, 3, shards.shard_rows)
    options = {"stop_step": 150, "micro_batch": micro}
    transform = TrainTransform(16, "coco")
    alone = make_train_loader(shards, transform, plan, **options)
    ring = make_train_loader(shards, transform, plan, reading=Reading(2, copy=False), **options)
    assert len(alone) == len(ring) == 600 // micro
    assert all(equal(a, b) for a, b in zip(alone, ring, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_the_random_state_alone(shards, workers):
    before = torch.get_rng_state()
    train(shards, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_resume_at_any_step(shards):
    whole = train(shards, stop_step=9)
    for start in (1, 3, 8):
        rest = train(shards, start_step=start, stop_step=9)
        assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_another_epoch_gives_another_view(shards):
    first, second = train(shards, global_batch=15, stop_step=2)
    a, b = first["indices"].argsort(), second["indices"].argsort()
    assert torch.equal(first["indices"][a], second["indices"][b])
    assert not torch.equal(first["images"][a], second["images"][b])


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_item_stops_with_its_name(tmp_path, workers):
    """Fault 16."""
    folder = small_set(tmp_path)
    shards, path = ShardSet(folder), folder / "shard-00001.h5"
    data, blob = bytearray(path.read_bytes()), shards.blob("image", 7)
    data[bytes(data).index(blob) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard-00001.h5: image of 'image_7' is damaged") as caught:
        train(ShardSet(folder), global_batch=15, stop_step=1, workers=workers)
    assert "Traceback" not in str(caught.value) and caught.value.fix


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_sees_each_image_once(shards, workers):
    seen = []
    for rank in range(4):
        loader = make_eval_loader(shards, 16, batch_size=3, rank=rank, world=4, workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            seen += batch["indices"].tolist()
            for index, size, mask in zip(batch["indices"], batch["sizes"], batch["masks"],
                                         strict=True):
                assert list(mask.shape) == size.tolist() == shards.sizes[index].tolist()
                assert mask[1, 0] == index % 3 + 1 and mask[0, 0] == 255
    assert sorted(seen) == list(range(15))


def test_evaluation_of_some_rows(shards):
    batches = list(make_eval_loader(shards, 16, batch_size=2, indices=[9, 4, 1], masks=False))
    assert [batch["indices"].tolist() for batch in batches] == [[9, 4], [1]]
    assert batches[0]["masks"] == [None, None]
    other = next(iter(make_eval_loader(shards, 16, indices=[9], mean=(0, 0, 0), std=(1, 1, 1))))
    assert other["images"].max() > 100
