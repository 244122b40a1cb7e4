"""Learning-rate schedule and AdamW trajectory against the recorded ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from more.train.optimizer import make_scheduler
from tests.parity.compare import close

SCALES = (1, 1, 10, 10, 10)


def rates(lr, warmup, total, ratio, power, updates) -> np.ndarray:
    """Rates [updates, 5] that the five groups' updates run at."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr * s} for s in SCALES]
    optimizer = torch.optim.AdamW(groups)
    scheduler = make_scheduler(optimizer, int(warmup), int(total), ratio, power)
    used = []
    optimizer.step()  # PyTorch wants one before the schedule's; rates depend on none
    for _ in range(updates):
        used.append([group["lr"] for group in optimizer.param_groups])
        scheduler.step()
    return np.array(used)


@pytest.mark.parametrize("name", ["s200", "s200b"])
def test_short_schedules(parity, name):
    data = parity("optim")
    expected = data[f"{name}.lr"]
    np.testing.assert_allclose(rates(*data[f"{name}.hyper"], len(expected)), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "total"), [("voc", 20000), ("coco", 80000)])
def test_long_schedules_at_chosen_steps(parity, name, total):
    data = parity("optim")
    steps = data[f"{name}.steps"]
    mine = rates(6e-5, 1500, total, 1e-6, 0.9, int(steps.max()) + 1)[steps]
    np.testing.assert_allclose(mine, data[f"{name}.lr"], rtol=1e-12)


def test_adamw_trajectory(parity):
    data = parity("optim")
    lr, head_lr, decay, beta1, beta2, eps, warmup, total, ratio, power = data["toy.hyper"]
    params = {name: torch.nn.Parameter(torch.tensor(data[f"toy.init.{name}"])) for name in "wbs"}
    groups = [{"params": [params[n]], "lr": head_lr if n == "s" else lr} for n in "wbs"]
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    scheduler = make_scheduler(optimizer, int(warmup), int(total), ratio, power)
    zero = set(data["toy.zero_grad_steps_of_s"].tolist())
    nothing = set(data["toy.none_grad_steps_of_s"].tolist())
    path = {name: [] for name in params}
    for step in range(len(data["toy.lr"])):
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups],
                                   data["toy.lr"][step], rtol=1e-12)
        for name, param in params.items():
            param.grad = torch.tensor(data[f"toy.grads.{name}"][step])
            if name == "s" and step in zero:
                param.grad.zero_()
            if name == "s" and step in nothing:
                param.grad = None
        optimizer.step()
        scheduler.step()
        for name, param in params.items():
            path[name].append(param.detach().clone())
    for name, values in path.items():
        close(torch.stack(values), data[f"toy.traj.{name}"], 1e-5, name=name)
