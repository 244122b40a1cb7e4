"""Small parts of what guards a run: random states, losses that are not finite."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from more.train import random_state
from more.train.distributed import World
from more.train.optimizer import GuardedAdamW, poisoned
from tests.train.conftest import command, records


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.rand()),
            float(np.random.randn()), float(torch.rand(()))]


def test_random_states_come_back_to_their_rank():
    world = World(0, 1, 0, 1, torch.device("cpu"))
    random_state.seed(3, 0)
    draw()  # leaves a second Gaussian number waiting in two of the generators
    states = random_state.gather(world)
    expected = [draw() for _ in range(3)]
    random_state.restore(states, world)
    assert [draw() for _ in range(3)] == expected
    random_state.seed(3, 1)
    own = draw()
    random_state.seed(3, 1)
    random_state.restore(states, World(1, 2, 1, 2, torch.device("cpu")))  # a rank of its own
    assert draw() == own != expected[0]


def test_the_optimiser_clips_as_torch_does_and_knows_the_norm_of_before():
    first = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    second = copy.deepcopy(first)
    ours, theirs = GuardedAdamW(first, lr=0.1, eps=1.0), torch.optim.AdamW(second, lr=0.1, eps=1.0)
    ours.clip = 0.5
    for parameter in first + second:
        parameter.grad = torch.full_like(parameter, 2.0)
    ours.step()
    norm = torch.nn.utils.clip_grad_norm_(second, 0.5)
    theirs.step()
    assert float(ours.norm) == pytest.approx(float(norm)) == pytest.approx(2 * 7 ** 0.5)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two)


def test_the_logged_norm_is_that_of_before_clipping_whatever_the_stage(tiny, tmp_path):
    found = {}
    for stage in (0, 1):
        run = tmp_path / str(stage)
        done = command("train", tiny["config"], "--train", tiny["train"], "--run", run, *(
            part for setting in ("train.iterations=2", f"deepspeed.zero_stage={stage}",
                                 "optim.clip=0.01") for part in ("--set", setting)))
        assert done.returncode == 0, done.stderr
        found[stage] = records(run)
    for one, two in zip(found[0], found[1], strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3) and (
            one["grad_norm"] > 0.02), "as long as it was, not as it was made"
        for name, value in one["terms"].items():
            assert two["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-7)


def test_a_loss_that_is_not_finite_spoils_the_gradient():
    """Even where it came over a path without gradient; a finite one changes nothing at all."""
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    for constant, finite in ((0.0, True), (float("nan"), False), (float("inf"), False)):
        total = (weights * 3).sum() + constant
        (gradient,) = torch.autograd.grad(poisoned(total, weights), weights)
        assert torch.isfinite(gradient).all() == finite
        if finite:
            assert torch.equal(gradient, torch.tensor([3.0, 3.0]))
            assert torch.equal(poisoned(total, weights), total)
