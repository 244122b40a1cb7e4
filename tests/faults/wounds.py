"""Trainings with something wrong in them: `python -m tests.faults.wounds WOUND[:ARGUMENT] train …`.

Each wound replaces one function of the program, then the usual command line runs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch


def killed_while_saving(step: str) -> None:
    """SIGKILL between the files of a checkpoint (fault 1)."""
    from more.train import checkpoint_files

    original = checkpoint_files.write_file

    def write(path, data):
        if f"step-{int(step):06d}" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, data)

    checkpoint_files.write_file = write


def not_finite(place: str) -> None:
    """The network of one rank gives NaN everywhere at one iteration, "RANK,ITERATION" (fault 7)."""
    from more.train import stage_one

    rank, iteration = map(int, place.split(","))
    original, seen = stage_one.in_float32, [0]

    def in_float32(output):
        output = original(output)
        if int(os.environ.get("RANK", "0")) == rank and seen[0] == iteration:
            output = type(output)(*(value * float("nan") for value in output))
        seen[0] += 1
        return output

    stage_one.in_float32 = in_float32


def sleeping(place: str) -> None:
    """One rank sleeps for two minutes, "RANK,ITERATION" (fault 14)."""
    from more.train import stage_one

    rank, iteration = map(int, place.split(","))
    original, seen = stage_one.network_input, [0]

    def network_input(*arguments):
        if int(os.environ.get("RANK", "0")) == rank and seen[0] == iteration:
            time.sleep(120)
        seen[0] += 1
        return original(*arguments)

    stage_one.network_input = network_input


def out_of_memory(_: str) -> None:
    """The first forward of the trainer finds no memory (fault 13; a GPU is not needed for it)."""
    from more.train import stage_one

    def network_input(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    stage_one.network_input = network_input


def slow(seconds: str) -> None:
    """Every update takes some time more, so that signals meet it."""
    from more.train.trainer import Trainer

    original = Trainer._pass

    def _pass(self, *arguments):
        time.sleep(float(seconds))
        return original(self, *arguments)

    Trainer._pass = _pass


def read_late(place: str) -> None:
    """Not a fault: means are read an update late, as on a GPU. One rank is asked to stop in one
    update, "RANK,ITERATION"."""
    from more.train import trainer

    rank, iteration = map(int, place.split(","))
    step, means = trainer.Trainer._step, trainer.Means

    def _step(self, number, *arguments):
        self.stop.signalled |= self.world.rank == rank and number == iteration
        return step(self, number, *arguments)

    trainer.Trainer._step = _step
    trainer.Means = lambda meter, late: means(meter, late=True)


def lingering(place: str) -> None:
    """A phase of the run that takes its time, "PHASE,FILE": FILE is there once it has begun."""
    from more.train import checkpoint_files, frozen_tokens, stage_one, validation, warm_up

    phase, _, file = place.partition(",")
    module, name, seconds = {"start": (stage_one.TagStage, "begin", 60),
                             "warm-up": (warm_up, "_terms", 0.3),
                             "tokens": (frozen_tokens, "network_input", 0.3),
                             "evaluation": (validation, "_labels", 0.5),
                             "saving": (checkpoint_files, "commit_folder", 0.7)}[phase]
    original = getattr(module, name)

    def slow(*arguments):
        open(file, "w").close()
        time.sleep(seconds)
        return original(*arguments)

    setattr(module, name, slow)


def half_on_the_cpu(_: str) -> None:
    """Not a fault: DeepSpeed believes that this CPU computes in fp16 (slowly, it does)."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


WOUNDS: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (killed_while_saving, not_finite, sleeping, out_of_memory, slow,
                     lingering, read_late, half_on_the_cpu)}

if __name__ == "__main__":
    name, _, argument = sys.argv.pop(1).partition(":")
    WOUNDS[name](argument)
    from more.cli import main

    main()
