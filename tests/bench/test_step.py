"""The step that is measured: equal to the formulas, its operations, its parts, its picture."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from more.bench import step, steps
from more.bench.flops import FlopCount, gemm_peak, step_flops
from more.bench.profile import draw_parts
from more.bench.train import bench_settings
from more.errors import UserError
from more.method.make_network import make_network
from tests.train.conftest import command

CPU = torch.device("cpu")
SMALL = """
model = dict(backbone="custom", num_classes=5, decoder_width=8, token_init="perturbed",
             vit=dict(patch_size=8, embed_dim=16, depth=4, num_heads=2, mlp_ratio=2.0))
data = dict(crop=72, workers=0)
cam = dict(scales=(1.0, 0.5, 1.25), late_after=10)
train = dict(iterations=50, global_batch=2, threads=1)
inference = dict(size=72, scales=(1.0,), segment_scales=(1.0,))
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return bench_settings(file)


def pair(config):
    network = make_network(config).train()
    example = steps.drawn_example(config, 2, 8, CPU)
    return (steps.OwnStep(config, network, example),
            steps.ResearchStep(config, copy.deepcopy(network), example, by_position=True))


def test_the_oracle_step_has_the_same_terms_and_gradients(config):
    own, other = pair(config)
    assert step.compare_terms(own, other) < 2e-5
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
        step.compare_terms(own, other)


def test_parts_add_up_and_both_steps_train_alike(config):
    own, other = pair(config)
    both = {"a": own, "b": other}
    numbers = iter((3.0, 5.0))
    parts, peaks = step.time_parts(both, 1, CPU, lambda: next(numbers))
    assert peaks == [3.0]  # the round that does not count has none
    for part in parts.values():
        assert set(part) == set(steps.PARTS) and all(value > 0 for value in part.values())
    for ours, theirs in zip(own.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # two updates


def test_paper_options_are_refused(config):
    for key, value in (("cre_reduction", "pairs"), ("energy_filter", "attention")):
        other = replace(config, loss=replace(config.loss, **{key: value}))
        with pytest.raises(UserError, match=rf"loss\.{key}"):
            step.bench_step(other, oracle="research")


def test_operations_are_those_of_the_layers(config):
    found = step_flops(config, 2)
    tokens, width = 4 + 5 + 81, 16
    block = 2 * tokens * width * width * (4 + 2 * 2) + 4 * tokens ** 2 * width
    embed = 2 * 81 * 3 * 64 * width
    # Outside of the blocks: classifiers on maps and on pooled features, GCR, the decoder.
    rest = 2 * 81 * (9 * width * 8 + 9 * 8 * 8 + 8 * 6)
    assert found["forward"] / 2 == pytest.approx(4 * block + embed + rest, rel=0.03)
    assert found["forward"] / 2 > 4 * block + embed + rest
    # Backward is twice the forward but for the images' gradient and the CAMs.
    assert 1.8 < found["backward"] / found["forward"] < 2.1

    def views(side, number):
        tokens = 9 + (side // 8) ** 2
        block = 2 * tokens * width * width * 8 + 4 * tokens ** 2 * width
        return number * (4 * block + 2 * (side // 8) ** 2 * width * (3 * 64 + 2 * 5))
    assert found["cam"] == 2 * (views(72, 1) + views(36, 2) + views(90, 2))
    model = replace(config.model, gradient_checkpointing=True)
    assert step_flops(replace(config, model=model), 2) == found


def test_the_counter_agrees_with_torchs_own():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(2),
                                torch.nn.Linear(36, 7))
    counts = []
    for counter in (FlopCount(), FlopCounterMode(display=False)):
        with counter:
            layer(torch.randn(2, 3, 8, 8)).sum().backward()
        counts.append(counter.total if isinstance(counter, FlopCount)
                      else counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    q = torch.randn(2, 3, 10, 4, requires_grad=True)
    with FlopCount() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.total == 3 * 2 * 2 * 2 * 3 * 10 * 10 * 4


def test_use_of_the_machine_is_a_quotient(config):
    found = step.machine_use(config, 2, 0.5, 2e9)
    assert found["utilisation"] == pytest.approx(found["GFLOP a step"] / 0.5 / 2)
    assert 1e8 < gemm_peak(CPU, rounds=1) < 1e15


def test_bf16_views_rarely_change_a_label(config):
    assert 0.9 < step.label_agreement(pair(config)[0]) <= 1


def test_a_picture_of_the_parts(tmp_path):
    parts = {name: dict.fromkeys(steps.PARTS, value) for name, value in (("a", 1.0), ("b", 0.2))}
    draw_parts(parts, tmp_path / "step.svg", "title")
    text = (tmp_path / "step.svg").read_text()
    assert "<svg" in text and all(part in text for part in (*steps.PARTS, "5.00 × as fast"))
    with pytest.raises(UserError, match="cannot be written"):
        draw_parts(parts, tmp_path / "missing" / "step.png", "title")


@pytest.mark.slow
def test_the_command(tmp_path):
    file, picture = tmp_path / "small.py", tmp_path / "step.png"
    file.write_text(SMALL)
    done = command("bench", "train", "--config", file, "--step-only", "--rounds", 1, "--oracle",
                   "research", "--compile", "eager", "--profile", picture, "--set",
                   "cam.scales=(1.0,0.5)", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["difference of terms"] < 2e-4 and picture.stat().st_size > 5000
    lines = {line["name"]: line for line in facts["step"]}
    assert set(lines) == {step.OURS, step.COMPILED, step.RESEARCH["research"]}
    assert lines[step.OURS]["ratio"] == pytest.approx(
        lines[step.RESEARCH["research"]]["seconds"] / lines[step.OURS]["seconds"])
    assert facts["utilisation"] > 0 and facts["MB at most, this step"] > 0
    assert facts["s to compile"] > 0 and not facts["rows"]
    assert command("bench", "train", "--oracle", "mine").returncode == 2
