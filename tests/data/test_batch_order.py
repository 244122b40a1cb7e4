"""The sample order: the same for every number of ranks, resumable from one integer, local."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.batch_order import GlobalBatchSampler, MicroBatches, epoch_order
from more.errors import UserError

WORLDS = (1, 2, 3, 4, 8, 64)
rows_of_shards = st.lists(st.integers(1, 20), min_size=1, max_size=30)


@given(rows_of_shards, st.integers(0, 9), st.integers(0, 5), st.integers(1, 9),
       st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_epoch_order_is_a_permutation(rows, seed, epoch, window, places):
    n = sum(rows)
    for shards in (None, rows):
        for used in (None, n, n // places * places):
            options = {"places": places, "window": window, "used": used}
            order = epoch_order(n, seed, epoch, shards, **options)
            assert order.dtype == np.int64 and sorted(order) == list(range(n))
            assert np.array_equal(order, epoch_order(n, seed, epoch, shards, **options))


def test_epochs_and_seeds_differ_and_rows_must_add_up():
    for shards in (None, [10] * 5):
        orders = [tuple(epoch_order(50, seed, epoch, shards, places=5))
                  for seed in range(3) for epoch in range(3)]
        assert len(set(orders)) == 9
    with pytest.raises(ValueError, match="not 9"):
        epoch_order(9, 0, 0, [3, 3])


def _plan(rows, batch, seed, local, last):
    return GlobalBatchSampler(sum(rows), batch, seed, rows if local else None, window=2, last=last)


@given(rows_of_shards, st.sampled_from(WORLDS), st.integers(1, 4), st.integers(0, 3),
       st.integers(0, 30), st.booleans(), st.sampled_from(["drop", "carry"]))
@settings(max_examples=150, deadline=None)
def test_ranks_share_each_global_batch(rows, world, per_rank, seed, start, local, last):
    """Every world size draws the same batches, disjoint between ranks, from any step on."""
    size = world * per_rank
    if size > sum(rows):
        with pytest.raises(UserError, match="global batch"):
            _plan(rows, size, seed, local, last)
        return
    plan, whole = (_plan(rows, size, seed, local, last) for _ in range(2))
    ranks = [list(itertools.chain(*MicroBatches(plan, rank, world, start_step=start,
                                                stop_step=start + 3))) for rank in range(world)]
    for step in range(start, start + 3):
        expected, epochs = whole.batch(step)
        offset = step - start
        keys = [key for rank in ranks
                for key in rank[offset * per_rank:(offset + 1) * per_rank]]
        assert [key.index for key in keys] == expected.tolist()
        assert [key.slot for key in keys] == list(range(size))
        assert [key.epoch for key in keys] == epochs.tolist()
        assert len({(key.epoch, key.index) for key in keys}) == size


@given(rows_of_shards, st.integers(1, 40), st.integers(0, 3), st.booleans(),
       st.sampled_from(["drop", "carry"]))
@settings(max_examples=100, deadline=None)
def test_the_union_of_batches_is_the_epoch(rows, batch, seed, local, last):
    """Nothing twice in an epoch; "carry" misses nothing, "drop" less than one batch."""
    n = sum(rows)
    if batch > n:
        return
    plan = _plan(rows, batch, seed, local, last)
    steps = -(-3 * n // batch)
    seen: dict[int, list[int]] = {}
    for step in range(steps):
        for sample, epoch in zip(*plan.batch(step), strict=True):
            seen.setdefault(int(epoch), []).append(int(sample))
    for epoch in range(3 if last == "carry" else len(seen) - 1):
        assert len(seen[epoch]) == len(set(seen[epoch])) == plan.per_epoch
        if last == "carry":
            assert sorted(seen[epoch]) == list(range(n))
        else:
            assert n - plan.per_epoch < batch


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans(),
       st.sampled_from(["drop", "carry"]))
@settings(max_examples=40, deadline=None)
def test_resume_continues_the_uninterrupted_order(start, world, micro, local, last):
    rows = [9, 9, 9, 10]
    plan = _plan(rows, 8, 5, local, last)
    for rank in range(world):
        whole = list(MicroBatches(plan, rank, world, micro, 0, start + 3))
        tail = MicroBatches(_plan(rows, 8, 5, local, last), rank, world, micro, start, start + 3)
        assert len(tail) == 3 * tail.accumulation == 3 * 8 // world // micro
        whole = [[key[:3] for key in batch] for batch in whole[start * tail.accumulation:]]
        assert [[key[:3] for key in batch] for batch in tail] == whole


def test_dropped_samples_are_spread_evenly():
    """Not always the last rows of a shard: over many epochs each is dropped about as often."""
    plan = GlobalBatchSampler(46, 8, 0, [23, 23])
    dropped = np.zeros(46, int)
    for epoch in range(400):
        dropped[plan._order(epoch)[plan.per_epoch:]] += 1
    assert dropped.sum() == 400 * 6 and dropped.min() > 25 and dropped.max() < 85


def _coco(world, per_rank=2, shards=1000, n=118_287):
    rows = [n // shards + (k < n % shards) for k in range(shards)]
    return GlobalBatchSampler(n, world * per_rank, 0, rows), np.repeat(np.arange(shards), rows)


@pytest.mark.parametrize("world", [8, 64, 1024])
def test_ranks_read_whole_shards(world):
    """COCO in 1,000 shards: a rank touches its share of the shards and a few at the seams."""
    plan, shard_of = _coco(world)
    steps = plan.per_epoch // plan.global_batch
    batches = np.stack([plan.batch(step)[0] for step in range(steps)])
    for rank in {0, 1, world // 2, world - 1}:
        touched = shard_of[batches[:, plan.rank_slice(rank, world)]]
        assert len(np.unique(touched)) <= 1000 / world + 2
        # and no place of the batch jumps about: few files are open at any time
        place = touched[:, 0]
        for first in range(0, len(place) - 50, 50):
            assert len(np.unique(place[first:first + 50])) <= 2 * plan.window


def test_carried_epochs_stay_local():
    """The second epoch begins in the middle of a batch: stretches move on by some places, and ranks
    still read whole shards (the one where they wrap round reads two stretches)."""
    plan, shard_of = _coco(8)
    plan = GlobalBatchSampler(plan.n, plan.global_batch, 0, plan.shard_rows, last="carry")
    first, last = plan.n // plan.global_batch, 2 * plan.n // plan.global_batch
    assert plan.n % plan.global_batch
    seen: list[set[int]] = [set() for _ in range(8)]
    for step in range(first, last + 1):
        samples, epochs = plan.batch(step)
        for rank, touched in enumerate(seen):
            part = plan.rank_slice(rank, 8)
            touched.update(shard_of[samples[part][epochs[part] == 1]].tolist())
    assert max(map(len, seen)) <= 1000 / 8 + 4


def test_a_thousand_ranks_are_balanced_and_planned_at_once():
    """1,024 ranks × 1,000 shards: equal shares, an epoch's plan of COCO in under 2 s."""
    started = time.process_time()
    plan, _ = _coco(1024)
    order = plan._order(0)
    assert time.process_time() - started < 2
    assert sorted(order) == list(range(118_287))
    counts = [len(list(itertools.chain(*MicroBatches(plan, rank, 1024, None, 0, 57))))
              for rank in range(0, 1024, 93)]
    assert plan.per_epoch // plan.global_batch == 57 and set(counts) == {57 * 2}


def test_batches_mix_the_whole_set():
    """Samples of one batch come from as many shards as it has places, or nearly."""
    plan, shard_of = _coco(8)
    spread = [len(np.unique(shard_of[plan.batch(step)[0]])) for step in range(0, 7000, 500)]
    assert min(spread) >= 15


def test_batches_that_do_not_divide_are_refused():
    """Fault 5."""
    plan = GlobalBatchSampler(20, 6, 0)
    with pytest.raises(UserError, match="6 over 4 ranks") as caught:
        plan.rank_slice(0, 4)
    assert "multiple of 4" in caught.value.fix
    with pytest.raises(UserError, match="micro-batches of 2"):
        MicroBatches(plan, 0, 2, 2)
    with pytest.raises(ValueError, match="last 'repeat'"):
        GlobalBatchSampler(20, 6, 0, last="repeat")


def test_endless_sampler_goes_on():
    batches = itertools.islice(MicroBatches(GlobalBatchSampler(5, 5, 0)), 4)
    assert [sorted(key.index for key in batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 4
    with pytest.raises(TypeError):
        len(MicroBatches(GlobalBatchSampler(5, 5, 0)))
