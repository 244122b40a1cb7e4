"""Learning-rate factors and frozen groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from more.train.optimizer import make_scheduler, poly_factor


@given(st.integers(0, 500), st.integers(1, 100), st.integers(101, 400), st.floats(1e-6, 0.5))
def test_factor_stays_between_zero_and_one(update, warmup, total, ratio):
    assert 0 < poly_factor(update, warmup, total, ratio, 0.9) <= 1


def test_rate_drops_at_the_end_of_the_warm_up_and_stays_after_the_last_update():
    at = [poly_factor(i, 10, 100, 1e-6, 0.9) for i in range(120)]
    assert at[9] == pytest.approx(0.9, abs=1e-6)
    assert at[10] == pytest.approx(0.9**0.9)
    assert set(at[99:]) == {at[99]}


def test_frozen_groups_neither_move_nor_decay():
    frozen, free = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW(
        [{"params": [frozen], "freezable": True}, {"params": [free], "freezable": False}], lr=0.1)
    scheduler = make_scheduler(optimizer, 1, 10, 1e-6, 0.9, frozen=3)
    for step in range(5):
        frozen.grad, free.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        scheduler.step()
        assert torch.equal(frozen.detach(), torch.ones(3)) == (step < 3)
    assert not torch.equal(free.detach(), torch.ones(3))
