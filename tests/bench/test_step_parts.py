"""The step that is measured: equal to the formulas, its operations, its parts, its picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from more.bench import drawn_step, step_parts
from more.bench.bench_train import bench_settings, draw_parts
from more.bench.flops import FlopCount, gemm_peak, step_flops
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


def own_step(config):
    network = make_network(config).train()
    return drawn_step.OwnStep(config, network, drawn_step.drawn_example(config, 2, 8, CPU))


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
    found = step_parts.machine_use(config, 2, 0.5, 2e9)
    assert found["utilisation"] == pytest.approx(found["GFLOP a step"] / 0.5 / 2)
    assert 1e8 < gemm_peak(CPU, rounds=1) < 1e15


def test_bf16_views_rarely_change_a_label(config):
    assert 0.9 < step_parts.label_agreement(own_step(config)) <= 1


def test_a_picture_of_the_parts(tmp_path):
    parts = {name: dict.fromkeys(drawn_step.PARTS, value)
             for name, value in (("a", 1.0), ("b", 0.2))}
    draw_parts(parts, tmp_path / "step.svg", "title")
    text = (tmp_path / "step.svg").read_text()
    assert "<svg" in text and all(part in text for part in (*drawn_step.PARTS, "5.00 × as fast"))
    with pytest.raises(UserError, match="cannot be written"):
        draw_parts(parts, tmp_path / "missing" / "step.png", "title")


@pytest.mark.slow
def test_the_command(tmp_path):
    file, picture = tmp_path / "small.py", tmp_path / "step.png"
    file.write_text(SMALL)
    done = command("bench", "train", "--config", file, "--step-only", "--rounds", 1, "--compile",
                   "eager", "--profile", picture, "--set", "cam.scales=(1.0,0.5)", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "difference of terms" not in facts and picture.stat().st_size > 5000
    lines = {line["name"]: line for line in facts["step"]}
    assert set(lines) == {step_parts.OURS, step_parts.COMPILED}
    assert lines[step_parts.COMPILED]["ratio"] == pytest.approx(
        lines[step_parts.OURS]["seconds"] / lines[step_parts.COMPILED]["seconds"])
    assert facts["utilisation"] > 0 and facts["MB at most, this step"] > 0
    assert facts["s to compile"] > 0 and not facts["rows"]
