"""What a dry run says, and that its memory figures are those of real engines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.plan import dry_run, dry_run_tables
from more.plan.memory import Layout, checkpoint_bytes, parameter_sizes, stage_memory
from tests.processes import run

MEASURE = """
import gc, json, sys, warnings
import torch
from more.config.load import load_config
from more.train import checkpoint
from more.train.average import average_of
from more.method.make_network import make_network
from more.train.engine import make_optimizer
from more.train.deepspeed_settings import deepspeed_dict, split_batch
from more.train.distributed import import_deepspeed, setup, teardown
from more.train.optimizer import make_scheduler

def live():
    gc.collect()
    seen = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None:
                    seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())

warnings.simplefilter("ignore")
world, found, engines = setup(1, 1), {}, []
for name in sys.argv[2:]:
    stage, precision = name.split("-")
    config = load_config(sys.argv[1], [f"deepspeed.zero_stage={stage}", f"precision={precision}",
                                       "deepspeed.bucket_mb=1"])
    before = live()
    network = make_network(config)
    optimizer = make_optimizer(config, network)
    engine, *_ = import_deepspeed().initialize(
        model=network, optimizer=optimizer, lr_scheduler=make_scheduler(optimizer, 2, 6, 0.1, 0.9),
        config=deepspeed_dict(config, split_batch(4, 1)))
    engines.append(engine)  # alive to the end, so that the difference is this engine's
    for _ in range(2):
        output = engine(torch.rand(1, 3, 64, 64).to(next(network.parameters()).dtype))
        loss = sum(value.square().mean() for value in output)
        engine.backward(loss)
        del output, loss
        held = live() - before
        engine.step()
    snapshots = {average: checkpoint.take(engine, 2, world, average_of(engine, 0.9)
                                          if average else None).bytes for average in (False, True)}
    found[name] = {"held": held, "checkpoint": snapshots[False], "averaged": snapshots[True]}
teardown()
print(json.dumps(found))
"""


HELD = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16_weights"),
        (2, "bf16_weights")]


@pytest.fixture(scope="module")
def measured(tiny) -> dict[str, dict[str, int]]:
    """Bytes of all tensors that engines of each ZeRO stage keep between backward and step."""
    done = run("tests.code", MEASURE, tiny["config"], *(
        f"{stage}-{precision}" for stage, precision in HELD), timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("stage", "precision"), HELD)
def test_the_formulas_are_what_engines_hold(tiny, measured, stage, precision):
    sizes, frozen, buffers = parameter_sizes(load_config(tiny["config"]))
    expected = stage_memory(stage, sizes, Layout(precision=precision, bucket=2**20))
    found = measured[f"{stage}-{precision}"]
    buckets = expected.buffers if stage == 3 else 0  # the others are gone after backward
    assert found["held"] == pytest.approx(expected.states + buckets, rel=0.1)
    for name, average in (("checkpoint", False), ("averaged", True)):
        size = checkpoint_bytes(sizes, frozen, buffers, average)
        assert found[name] == pytest.approx(size, abs=20_000)  # 15 kB of randomness


def test_deepspeeds_own_estimates_differ_by_what_the_docstring_says():
    sizes = [10**6] * 40
    total = sum(sizes)
    for world in (1, 2, 8):
        theirs = estimate_zero2_model_states_mem_needs(total, world, 1, cpu_offload=False)[1]
        half = stage_memory(2, sizes, Layout(world, "fp16")).states
        assert theirs == pytest.approx(half + 4 * total / world, rel=1e-6)  # fp32 gradients
        ours = stage_memory(2, sizes, Layout(world)).states
        assert (theirs == ours) if world == 1 else (theirs < ours)
        full = estimate_zero3_model_states_mem_needs(total, 0, world, 1, False, False)[1]
        assert full == pytest.approx(stage_memory(3, sizes, Layout(world)).states * 18 / 20)


@pytest.mark.parametrize(("stage", "passes", "whole", "cut"), [
    (0, 1, 16, 0), (1, 1, 4, 16), (1, 2, 8, 12), (2, 2, 4, 16), (3, 2, 0, 20)])
def test_more_ranks_take_less_of_each(stage, passes, whole, cut):
    sizes = [200_000] * 50
    for world in (1, 2, 8):
        held = stage_memory(stage, sizes, Layout(world, accumulation=passes)).states
        assert held == pytest.approx(sum(sizes) * (whole + cut / world))


def test_16_bit_weights_have_an_average_of_their_copies():
    sizes = [200_000] * 50
    for precision in ("fp16", "bf16_weights"):
        found = stage_memory(2, sizes, Layout(8, precision, average=True, frozen=10**6))
        assert found.average == found.master == 4 * sum(sizes) / 8


def test_what_is_offloaded_is_not_on_the_device():
    sizes = [200_000] * 50
    spread = stage_memory(3, sizes, Layout(8, offload="parameters"))
    assert spread.device == spread.gradients  # the rest is on the CPU
    partly = stage_memory(1, sizes, Layout(8, offload="optimizer"))
    assert partly.device == partly.weights + partly.gradients
    assert stage_memory(0, sizes, Layout(8, offload="optimizer")).host == 0


@pytest.fixture
def sets(tiny) -> tuple[ShardSet, ShardSet]:
    return ShardSet(tiny["train"]), ShardSet(tiny["val"])


def test_facts_of_a_run(tiny, sets):
    config = load_config(tiny["config"], ["train.micro_batch=1", "data.workers=1",
                                          "train.iterations=13", "checkpoint.every=5"])
    facts = dry_run.describe(config, *sets, 2)
    assert list(facts["images_per_class"].values()) == sorted(sets[0].tags.sum(0), reverse=True)
    assert facts["batch"] == {"global": 4, "ranks": 2, "micro": 1, "accumulation": 2}
    assert facts["steps_per_epoch"] == 6 and facts["images_seen"] == 52
    assert facts["epochs"] == pytest.approx(13 / 6)
    assert facts["checkpoints"]["steps"] == [5, 10, 13]
    assert facts["evaluation"] == {"steps": [13], "images": 4}
    assert facts["parameters"] == sum(parameter_sizes(config)[0])
    assert facts["loader"]["shared_bytes"] <= config.data.prefetch_mb * 2**20 + 16 * 64 * 64 * 3
    assert [row["stage"] for row in facts["memory"]] == [0, 1, 2, 3]
    half = dry_run.describe(replace(config, precision="bf16_weights"), *sets, 2)
    assert half["precision"] == "bf16_weights"
    assert [row["stage"] for row in half["memory"]] == [1, 2]
    for row, full in zip(half["memory"], facts["memory"][1:3], strict=True):
        assert 2 * row["weights"] == full["weights"] and row["master"] == full["master"]
    assert json.loads(json.dumps(facts)) == facts


def test_carried_batches_count_whole_epochs(tiny, sets):
    config = load_config(tiny["config"], ["train.global_batch=5", "data.last_batch=carry"])
    facts = dry_run.describe(config, sets[0], None, 1)
    assert facts["steps_per_epoch"] == pytest.approx(24 / 5)
    assert facts["evaluation"] == {"steps": [], "images": 0}


@pytest.mark.parametrize(("extra", "world", "message"), [
    (["train.global_batch=5"], 2, "cannot be spread over 2 ranks"),
    (["model.num_classes=9"], 1, "has 7 classes, the configuration 9"),
    (["data.crop=40"], 1, "5×5"),
    (["model.weights=missing.pth"], 1, "missing.pth"),
    (["model.backbone=vit_bose_patch16_224"], 1, "unknown backbone"),
])
def test_it_refuses_what_training_refuses(tiny, sets, extra, world, message):
    with pytest.raises(UserError, match=message):
        dry_run.describe(load_config(tiny["config"], extra), sets[0], None, world)


def test_nothing_is_fetched_started_or_written(tiny, sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("more.method.make_network.hub_state",
                        lambda *_: pytest.fail("weights were fetched"))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_: pytest.fail("a group"))
    config = load_config(tiny["config"], ["model.backbone=vit_base_patch16_224", "model.vit={}",
                                          "model.weights=timm", "data.crop=112"])
    run = tmp_path / "run"
    facts = dry_run.describe(config, *sets, 1, run=run)
    assert facts["start"] == "the beginning" and facts["parameters"] > 80e6 and not run.exists()
    assert not torch.distributed.is_initialized()
    dry_run_tables.show(facts)
    printed = capsys.readouterr().out
    assert "1 ←" in printed and "vit" not in printed and "GB" in printed
    dry_run_tables.show(facts, as_json=True)
    assert json.loads(capsys.readouterr().out) == facts
