"""A tiny run: 24 drawn images, a micro ViT of 7×7 patches, seconds on one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import FIXED, run, run_ranks

# A launcher for `command`: the interpreter as users start it, with all its imports.
REAL = (sys.executable, "-m", "more")

TINY = """
model = dict(backbone="custom", weights="none", num_classes=7, decoder_width=16,
             vit=dict(patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2.0),
             token_init="perturbed", regularising_std=0.02)
data = dict(crop=64, workers=0)
cam = dict(scales=(1.0, 0.5), late_after=4)
loss = dict(start=dict(seg=1, energy=1))
optim = dict(lr=1e-3, warmup=2)
train = dict(iterations=6, global_batch=4, log_every=1, threads=1)
eval = dict(every=0, images=4)
checkpoint = dict(every=3)
inference = dict(size=64, scales=(1.0,), segment_scales=(1.0,))
tokens = dict(views=2)
stage_two = dict(segment=dict(stride=2), optim=dict(lr=3e-3), train=dict(seed=2))
"""


def command(*arguments: object, start: tuple[str, ...] = ("more",), ranks: int = 1,
            launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run `python -m more …` in a process of its own, forked from one that has its imports.

    Args:
        arguments: the command line after `start`.
        start: module to run instead of `more`, and its first arguments.
        ranks: so many processes in one group, as torchrun makes them.
        launcher: a program and its arguments that starts it instead, or `REAL`.
    """
    if ranks > 1:
        return run_ranks(ranks, *start, *arguments)
    if not launcher:
        return run(*start, *arguments)
    environment = {**os.environ, **FIXED,
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, env=environment, timeout=280)


def records(run: Path) -> list[dict]:
    """The records of a run that carry loss terms, in order; the run may still be writing."""
    lines = []
    for line in (run / "log.jsonl").read_text().splitlines():
        with suppress(json.JSONDecodeError):  # half a line: being written, or cut off by a kill
            lines.append(json.loads(line))
    return [line for line in lines if "terms" in line]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Paths of a tiny configuration and its image shards: `config`, `train`, `val`, `folder`."""
    folder = tmp_path_factory.mktemp("tiny")
    config = folder / "tiny.py"
    config.write_text(TINY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def tool(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True, cwd=ROOT,
                       env=environment, capture_output=True)

    tool("data_tools.shapes", folder / "voc", "--images", 24, "--val", 8, "--size", 64,
         "--workers", 1)
    for split in ("train", "val"):
        tool("data_tools.voc", folder / "voc", folder / split, "--split", split, "--workers", 1)
    return {"config": config, "train": folder / "train", "val": folder / "val", "folder": folder}
