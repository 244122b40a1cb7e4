"""The sample order: the same for every number of ranks, resumable from one integer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.plan import GlobalBatchSampler, epoch_order
from more.data.sampler import MicroBatches
from more.errors import UserError


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(0, 9), st.integers(0, 5),
       st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_epoch_order_is_a_permutation(rows, seed, epoch, window):
    n = sum(rows)
    for shards in (None, rows):
        order = epoch_order(n, seed, epoch, shards, window)
        assert order.dtype == np.int64 and sorted(order) == list(range(n))
        assert np.array_equal(order, epoch_order(n, seed, epoch, shards, window))


def test_epochs_and_seeds_differ_and_windows_stay_together():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    order = epoch_order(60, 0, 0, [10] * 6, window=2) // 10
    for part in order.reshape(3, 20):
        assert len(set(part.tolist())) == 2
    with pytest.raises(ValueError, match="not 9"):
        epoch_order(9, 0, 0, [3, 3])


@given(n=st.integers(1, 60), batches=st.integers(1, 4), seed=st.integers(0, 3),
       start=st.integers(0, 30), world=st.sampled_from([1, 2, 3, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_ranks_share_each_global_batch(n, batches, seed, start, world):
    """Every world size draws the same batches, disjoint between ranks, from any step on."""
    size = world * batches
    if size > n:
        with pytest.raises(UserError, match="global batch"):
            GlobalBatchSampler(n, size, seed)
        return
    plan, whole = GlobalBatchSampler(n, size, seed), GlobalBatchSampler(n, size, seed)
    ranks = [list(itertools.chain(*MicroBatches(plan, rank, world, start_step=start,
                                                stop_step=start + 3))) for rank in range(world)]
    keys = sorted(itertools.chain(*ranks), key=lambda key: key.slot)
    for step in range(start, start + 3):
        expected = whole.batch(step)
        assert len(set(expected.tolist())) == size
        epoch = step // (n // size)
        offset = step - start
        rows = [key for rank in ranks
                for key in rank[offset * batches:(offset + 1) * batches]]
        assert [key.index for key in rows] == expected.tolist()
        assert [key.slot for key in rows] == list(range(size))
        assert {key.epoch for key in rows} == {epoch}
    assert len(keys) == 3 * size


@given(start=st.integers(0, 40), world=st.sampled_from([1, 2, 4]), micro=st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_resume_continues_the_uninterrupted_order(start, world, micro):
    plan = GlobalBatchSampler(37, 8, 5)
    for rank in range(world):
        whole = list(MicroBatches(plan, rank, world, micro, 0, start + 3))
        tail = MicroBatches(plan, rank, world, micro, start, start + 3)
        assert len(tail) == 3 * tail.accumulation == 3 * 8 // world // micro
        assert list(tail) == whole[start * tail.accumulation:]


def test_an_epoch_repeats_nothing_and_drops_less_than_a_batch():
    plan = GlobalBatchSampler(37, 8, 0)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.batch(step) for step in steps])
        assert len(set(seen.tolist())) == 32


def test_batches_that_do_not_divide_are_refused():
    """Fault 5."""
    plan = GlobalBatchSampler(20, 6, 0)
    with pytest.raises(UserError, match="6 over 4 ranks") as caught:
        plan.rank_slice(0, 4)
    assert "multiple of 4" in caught.value.fix
    with pytest.raises(UserError, match="micro-batches of 2"):
        MicroBatches(plan, 0, 2, 2)


def test_endless_sampler_goes_on():
    batches = itertools.islice(MicroBatches(GlobalBatchSampler(5, 5, 0)), 4)
    assert [sorted(key.index for key in batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 4
    with pytest.raises(TypeError):
        len(MicroBatches(GlobalBatchSampler(5, 5, 0)))
