"""The straightforward step that `tests.research train` measures: equal to this project's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from more.bench import drawn_step, step_parts
from more.bench.bench_train import bench_settings
from more.errors import UserError
from more.train.engine import make_network
from tests.bench.test_step_parts import SMALL
from tests.processes import run
from tests.research import plain_step

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return bench_settings(file)


def pair(config):
    network = make_network(config).train()
    example = drawn_step.drawn_example(config, 2, 8, CPU)
    return (drawn_step.OwnStep(config, network, example),
            plain_step.ResearchStep(config, copy.deepcopy(network), example, by_position=True))


def test_the_oracle_step_has_the_same_terms_and_gradients(config):
    own, other = pair(config)
    assert step_parts.compare_terms(own, other) < 2e-5
    gradients = []
    for one in (own, other):
        total = one.terms()["total"]
        gradients.append(torch.autograd.grad(total, list(one.network.parameters()),
                                             allow_unused=True))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)


def test_other_numbers_are_noticed(config):
    own, other = pair(config)
    other.network.classifier.weight.data.mul_(1.01)
    with pytest.raises(RuntimeError, match="differ"):
        step_parts.compare_terms(own, other)


def test_parts_add_up_and_both_steps_train_alike(config):
    own, other = pair(config)
    both = {"a": own, "b": other}
    numbers = iter((3.0, 5.0))
    parts, peaks = step_parts.time_parts(both, 1, CPU, lambda: next(numbers))
    assert peaks == [3.0]  # the round that does not count has none
    for part in parts.values():
        assert set(part) == set(drawn_step.PARTS) and all(value > 0 for value in part.values())
    for ours, theirs in zip(own.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # two updates


def test_paper_options_are_refused(config):
    for key, value in (("cre_reduction", "pairs"), ("energy_filter", "attention")):
        other = replace(config, loss=replace(config.loss, **{key: value}))
        with pytest.raises(UserError, match=rf"loss\.{key}"):
            step_parts.bench_step(other, other=plain_step.plain_step("research"))


@pytest.mark.slow
def test_the_command(tmp_path):
    file, picture = tmp_path / "small.py", tmp_path / "step.png"
    file.write_text(SMALL)
    done = run("tests.research", "train", "--config", file, "--step-only", "--rounds", 1,
               "--oracle", "research", "--compile", "eager", "--profile", picture, "--set",
               "cam.scales=(1.0,0.5)", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["difference of terms"] < 2e-4 and picture.stat().st_size > 5000
    lines = {line["name"]: line for line in facts["step"]}
    assert set(lines) == {step_parts.OURS, step_parts.COMPILED, plain_step.NAMES["research"]}
    assert lines[step_parts.OURS]["ratio"] == pytest.approx(
        lines[plain_step.NAMES["research"]]["seconds"] / lines[step_parts.OURS]["seconds"])
    assert facts["utilisation"] > 0 and facts["MB at most, this step"] > 0
    assert facts["s to compile"] > 0 and not facts["rows"]
    assert run("tests.research", "train", "--oracle", "mine").returncode == 2
