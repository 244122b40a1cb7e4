"""Small parts of what guards a run: random states, losses that are not finite."""

from __future__ import annotations

import random

import numpy as np
import torch

from more.engine import randomness
from more.engine.distributed import World
from more.engine.guard import poisoned


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.rand()),
            float(np.random.randn()), float(torch.rand(()))]


def test_random_states_come_back_to_their_rank():
    world = World(0, 1, 0, 1, torch.device("cpu"))
    randomness.seed(3, 0)
    draw()  # leaves a second Gaussian number waiting in two of the generators
    states = randomness.gather(world)
    expected = [draw() for _ in range(3)]
    randomness.restore(states, world)
    assert [draw() for _ in range(3)] == expected
    randomness.seed(3, 1)
    own = draw()
    randomness.seed(3, 1)
    randomness.restore(states, World(1, 2, 1, 2, torch.device("cpu")))  # a rank of its own
    assert draw() == own != expected[0]


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
