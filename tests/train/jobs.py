"""Several trainings one after another in one group of processes: a launch costs more than a run.

    python -m tests.train.jobs JOBS.json        (or so in every rank)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.train.conftest import command


def run_jobs(tiny: dict[str, Path], folder: Path, ranks: int, jobs: dict[str, list[str]],
             masks: Path | None = None, init: Path | None = None) -> subprocess.CompletedProcess:
    """Train every job (run name under `folder` → settings) with `ranks` processes.

    With masks it is stage two of the run `init`.
    """
    file = folder / f"jobs-{ranks}.json"
    folder.mkdir(exist_ok=True)
    # DeepSpeed leaves small weights whole under ZeRO 3; here all are small.
    (folder / "cut-all.json").write_text(json.dumps(
        {"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    # And with buckets smaller than the network, gradients leave in several.
    (folder / "small-buckets.json").write_text(json.dumps(
        {"zero_optimization": {"reduce_bucket_size": 4096}}))
    file.write_text(json.dumps({
        "config": str(tiny["config"]), "train": str(tiny["train"]), "val": str(tiny["val"]),
        "masks": masks and str(masks), "init": init and str(init),
        "runs": {str(folder / name): [option.format(folder=folder) for option in options]
                 for name, options in jobs.items()}}))
    done = command(file, start=("tests.train.jobs",), ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def main(path: str) -> None:
    """Run the jobs of a file in this process and its peers."""
    from deepspeed.accelerator import get_accelerator

    from more.config.load import load_config
    from more.data.shards.reader import ShardSet
    from more.train.distributed import leave, setup
    from more.train.stage_two import settled
    from more.train.trainer import Trainer

    jobs = json.loads(Path(path).read_text())
    world = setup(2, 1)
    get_accelerator().is_fp16_supported = lambda: True  # slow on a CPU, but it computes
    sets = [ShardSet(jobs[name], kind="images") for name in ("train", "val")]
    masks, init = (jobs[name] and Path(jobs[name]) for name in ("masks", "init"))
    labels = ShardSet(masks) if masks else None
    for run, settings in jobs["runs"].items():
        Path(run).mkdir(parents=True, exist_ok=True)
        config = load_config(Path(jobs["config"]), settings, 2 if masks else 1)
        config = settled(config, labels, init) if masks else config
        Trainer(config, *sets, Path(run), world, masks=labels, init=init).fit()
    leave(0, world)


if __name__ == "__main__":
    main(sys.argv[1])
