"""Training and the batch tools on a CUDA device, through their commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from more.bench.bench_train import bench_settings
from more.bench.drawn_step import OwnStep, drawn_example
from more.bench.step_parts import peak_bytes
from more.data.shards.reader import ShardSet
from more.device import local_device
from more.method.make_network import make_network
from more.plan.activations import step_activations
from tests.train.conftest import ROOT, records, tiny  # noqa: F401

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
              pytest.mark.timeout(200)]
CUDA = torch.device("cuda", 0)


def more(*arguments, cpu: bool = False) -> subprocess.CompletedProcess:
    """A command of its own; `cpu` hides the device."""
    kept = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if cpu else {}
    return subprocess.run([sys.executable, "-m", "more", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=190,
                          env={**kept, **hidden})


def train(tiny, run, *settings, **options):  # noqa: F811
    done = more("train", tiny["config"], "--train", tiny["train"], "--val", tiny["val"], "--run",
                run, *(part for setting in settings for part in ("--set", setting)), **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line["terms"]["total"] for line in records(run)]


def test_deepspeeds_variable_for_the_cpu_is_heeded(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert local_device() == torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("gpu") / "run"
    return run, train(tiny, run, "precision=bf16")


def test_float32_learns_as_on_the_cpu(tiny, tmp_path):  # noqa: F811
    there = train(tiny, tmp_path / "gpu", "precision=fp32", "cam.precision=model")
    here = train(tiny, tmp_path / "cpu", "precision=fp32", "cam.precision=model", cpu=True)
    np.testing.assert_allclose(there, here, rtol=2e-2)


def test_an_interrupted_run_goes_on(tiny, trained, tmp_path):  # noqa: F811
    """Three updates, then three more in another process: near to six at once (other schedule)."""
    train(tiny, tmp_path / "run", "precision=bf16", "train.iterations=3")
    parts = train(tiny, tmp_path / "run", "precision=bf16", "train.iterations=6")
    assert len(parts) == len(trained[1]) == 6
    np.testing.assert_allclose(parts, trained[1], rtol=0.1)


@pytest.mark.parametrize("settings", [
    "precision=fp16", "train.compile=inductor", "model.gradient_checkpointing=True",
    "train.ema=0.9 cam.ema=True", "deepspeed.zero_stage=1", "deepspeed.zero_stage=3"])
def test_options(tiny, tmp_path, settings):  # noqa: F811
    losses = train(tiny, tmp_path / "run", "precision=bf16", *settings.split())
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_from_seeds_to_masks(tiny, trained, tmp_path):  # noqa: F811
    run, seeds = trained[0], tmp_path / "seeds"
    done = more("localize", "--run", run, "--data", tiny["train"], "--out", seeds, "--map", "lam")
    assert done.returncode == 0, done.stderr[-3000:]
    masks = {}
    for name, options in {"gpu": ("--engine", "lattice", "--device", "cuda"),
                          "cpu": ("--engine", "lattice")}.items():
        done = more("refine", seeds, "--data", tiny["train"], "--out", tmp_path / name,
                    *options)
        assert done.returncode == 0, done.stderr[-3000:]
        shards = ShardSet(tmp_path / name)
        masks[name] = [shards.mask(row) for row in range(len(shards))]
    same = [float((a == b).mean()) for a, b in zip(*masks.values(), strict=True)]
    assert len(same) == 24 and np.mean(same) > 0.999
    done = more("predict", tiny["folder"] / "voc", "--run", run, "--out", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicted_activations_are_those_of_the_device(precision, checkpointing):
    config = bench_settings(ROOT / "configs" / "voc12_vit_b.py", [
        "model.backbone=vit_small_patch16_224", "data.crop=224", "train.global_batch=8",
        f"precision={precision}", f"model.gradient_checkpointing={checkpointing}"])
    network = make_network(config).to("cuda").train()
    step = OwnStep(config, network, drawn_example(config, 8, 16, CUDA))
    step()
    measured, predicted = peak_bytes(step, CUDA), step_activations(config, 8).peak
    print(json.dumps({"precision": precision, "checkpointing": checkpointing,
                      "measured": measured, "predicted": predicted}))
    assert 0.8 < predicted / measured < 1.2
