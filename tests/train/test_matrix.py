"""Every ZeRO stage and precision, one process and two, and going on with another number of them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import records
from tests.train.jobs import run_jobs

TEN = ["train.iterations=10", "checkpoint.every=5", "checkpoint.keep=5", "eval.every=0"]
STAGES = (0, 1, 2, 3)


def settings(stage: int, precision: str = "fp32", *more: str) -> list[str]:
    """Ten updates; in 16 bits small ones, or rounding moves a patch over a CAM's threshold.

    ZeRO 3 cuts even the smallest weight.
    """
    rate = ["optim.lr=1e-4"] if precision != "fp32" else []
    cut = ["deepspeed.json={folder}/cut-all.json"] if stage == 3 else []
    return [*TEN, f"deepspeed.zero_stage={stage}", f"precision={precision}", *rate, *cut, *more]


def until_five(run, copy):
    """A copy of a run as it was when it had made five updates."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-000010")
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 5]
    (copy / "log.jsonl").write_text("".join(kept))


def assert_same_losses(first, second, tolerance):
    """The same records with the same loss terms (in bf16 a term of 1e-4 is rounding itself)."""
    one, two = records(first), records(second)
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 11))
    for a, b in zip(one, two, strict=True):
        for name, value in a["terms"].items():
            assert b["terms"][name] == pytest.approx(
                value, rel=tolerance, abs=1e-4 if tolerance > 1e-3 else 1e-8), (
                second.name, a["step"], name)


def weights(run, step=10):
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Straight runs: one process (stage 1 to 3), two processes (all stages, both precisions)."""
    folder = tmp_path_factory.mktemp("matrix") / "runs"
    run_jobs(tiny, folder, 1, {
        **{f"one-{stage}-fp32": settings(stage) for stage in STAGES},
        "one-1-bf16": settings(1, "bf16"),
        "one-1-fp16": settings(1, "fp16"),
        "one-1-ema": settings(1, "fp32", "train.ema=0.9", "checkpoint.best=lam", "eval.every=4")})
    run_jobs(tiny, folder, 2, {
        **{f"two-{stage}-{precision}": settings(stage, precision)
           for stage in STAGES for precision in ("fp32", "bf16")},
        "two-2-fp16": settings(2, "fp16"), "two-3-fp16": settings(3, "fp16"),
        "two-3-whole": settings(3)[:-1],
        **{f"two-{stage}-passes": [*settings(stage)[:5], "train.micro_batch=1",
                                   "deepspeed.json={folder}/small-buckets.json"]
           for stage in (0, 1, 2)},
        "two-3-ema": settings(3, "fp32", "train.ema=0.9", "checkpoint.best=lam", "eval.every=4"),
        "two-2-offload": settings(2, "fp32", "deepspeed.offload=optimizer")})
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_two_ranks_give_the_losses_of_one(runs, stage, precision, tolerance):
    assert_same_losses(runs / f"one-1-{precision}", runs / f"two-{stage}-{precision}", tolerance)


def test_stages_are_one_training(runs):
    for stage in STAGES:
        assert_same_losses(runs / "one-1-fp32", runs / f"one-{stage}-fp32", 1e-4)
    assert_same_losses(runs / "two-2-fp32", runs / "two-2-offload", 1e-4)
    assert_same_losses(runs / "two-3-fp32", runs / "two-3-whole", 1e-4)
    for line in records(runs / "two-3-fp32"):
        assert line["grad_norm"] > 0 and set(line["ranks"]) == {
            "busy_least", "busy_most", "wait_most"} and line["memory_mb"] > 0
    norms = [records(runs / f"two-{stage}-fp32")[3]["grad_norm"] for stage in STAGES]
    assert max(norms) == pytest.approx(min(norms), rel=1e-4)


def test_several_passes_and_small_buckets(runs):
    """Gradients of two passes add up while full buckets are on their way (ZeRO 1 lost some)."""
    for stage in (1, 2):
        assert_same_losses(runs / "two-0-passes", runs / f"two-{stage}-passes", 1e-4)


@pytest.fixture(scope="module")
def resumed(tiny, runs, tmp_path_factory):
    """After five updates: two processes → one, one → two, and another stage."""
    folder = tmp_path_factory.mktemp("matrix") / "resumed"
    one = {f"two-to-one-{stage}": (f"two-{stage}-fp32", settings(stage)) for stage in STAGES}
    one["two-3-to-one-0"] = ("two-3-fp32", settings(0))
    two = {f"one-to-two-{stage}": (f"one-{stage}-fp32", settings(stage)) for stage in STAGES}
    two |= {"one-0-to-two-3": ("one-0-fp32", settings(3)),
            "two-again-1": ("two-1-fp32", settings(1)),
            "two-again-3": ("two-3-fp32", settings(3)),
            "fp16-to-two-3": ("two-2-fp16", settings(3, "fp16")),
            "ema-to-two-3": ("one-1-ema", settings(3, "fp32", "train.ema=0.9"))}
    for name, (source, _) in {**one, **two}.items():
        until_five(runs / source, folder / name)
    run_jobs(tiny, folder, 1, {name: options for name, (_, options) in one.items()})
    run_jobs(tiny, folder, 2, {name: options for name, (_, options) in two.items()})
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_another_number_of_ranks_goes_on(runs, resumed, stage):
    """Fault 5: 2 → 1 and 1 → 2, the same order and losses."""
    for name in (f"two-to-one-{stage}", f"one-to-two-{stage}"):
        assert_same_losses(runs / f"one-{stage}-fp32", resumed / name, 1e-4)


@pytest.mark.slow
def test_two_ranks_go_on_as_four(tiny, runs, tmp_path):
    jobs = {f"two-to-four-{stage}": settings(stage) for stage in (1, 2, 3)}
    for name in jobs:
        until_five(runs / f"two-{name[-1]}-fp32", tmp_path / "four" / name)
    run_jobs(tiny, tmp_path / "four", 4, jobs)
    for name in jobs:
        assert_same_losses(runs / "one-1-fp32", tmp_path / "four" / name, 1e-4)


def test_another_stage_goes_on(runs, resumed):
    """Fault 6: the state fits every stage."""
    for name in ("two-3-to-one-0", "one-0-to-two-3"):
        assert_same_losses(runs / "one-0-fp32", resumed / name, 1e-4)


def test_fp16_with_its_loss_scale(runs, resumed):
    """Made for GPUs; here DeepSpeed's fp16 runs on the CPU, scale, fp32 weights and all."""
    for run in (runs / "two-2-fp16", runs / "two-3-fp16", resumed / "fp16-to-two-3"):
        for one, two in zip(records(runs / "one-1-fp16"), records(run), strict=True):
            assert two["terms"]["total"] == pytest.approx(one["terms"]["total"], rel=5e-2)
    scale = json.loads((runs / "two-2-fp16/checkpoints/step-000010/state.json").read_text())
    assert scale["loss_scale"]["cur_scale"] >= 2


@pytest.mark.parametrize("stage", [1, 3])
def test_the_same_two_ranks_go_on_within_rounding(runs, resumed, stage):
    straight, again = weights(runs / f"two-{stage}-fp32"), weights(resumed / f"two-again-{stage}")
    for name, value in straight.items():
        assert torch.allclose(value, again[name], rtol=0, atol=1e-5), name


def test_the_average_is_saved_resumed_and_scored(runs, resumed):
    one, two, again = (weights(path) for path in (
        runs / "one-1-ema", runs / "two-3-ema", resumed / "ema-to-two-3"))
    # Without the bias of keys, which has no gradient: AdamW moves it by rounding alone.
    plain = {name: value for name, value in weights(runs / "one-1-fp32").items()
             if not name.endswith("attn.qkv.bias")}
    one = {name: one[name] for name in plain}
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
        assert torch.allclose(value, again[name], atol=1e-5), name
    assert any(not torch.allclose(value, plain[name], atol=1e-6) for name, value in one.items())
    for run in (runs / "one-1-ema", runs / "two-3-ema"):
        raw = load_file(run / "checkpoints/step-000010/training.safetensors")
        for name, value in plain.items():  # training itself is not touched by the average
            assert torch.allclose(raw[f"weights/{name}"], value, atol=1e-5), name
        best = json.loads((run / "checkpoints/best.json").read_text())
        assert best["metric"] == "lam" and (run / "checkpoints" / best["checkpoint"]).is_dir()
