"""Our kernels against the plain formulas of tests/oracles: results, time, bytes of tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from more.bench.measure import alternate
from more.device import keep_freed_memory
from more.errors import UserError

Results = dict[str, Tensor]
Line = dict[str, Any]
CPU = torch.device("cpu")
BLOCK = 0.05  # seconds that calls of a candidate are repeated for in a round
LABELS_MAY_DIFFER = 1e-5  # part of the pixels: where scores tie, the order of summation decides
NOTES = [
    "ms: processor time of one thread (on a GPU the time until it has finished), forward and "
    "backward, mean of repeated calls, median of rounds in turn. ratio: how often as fast as the "
    "plain formula. MB: most bytes allocated at once beyond the inputs, from the allocator itself. "
    "gap: largest difference of values and gradients relative to the largest value; of labels, the "
    "part that differs.",
]


@dataclass(frozen=True)
class Kernel:
    """One thing computed twice.

    Attributes:
        name: what is computed.
        ours: computes it, value and gradients by name.
        plain: the formula as it is written, same names.
        tolerance: largest difference relative to an array's largest value; labels are compared
            one by one.
    """

    name: str
    ours: Callable[[], Results]
    plain: Callable[[], Results]
    tolerance: float = 1e-4


def difference(found: Results, expected: Results) -> float:
    """Largest difference relative to the largest value; for whole numbers the part that differs."""
    worst = 0.0
    for name, wanted in expected.items():
        value = found[name]
        if value.shape != wanted.shape:
            raise RuntimeError(f"{name} has shape {list(value.shape)}, not {list(wanted.shape)}")
        if not wanted.is_floating_point():
            worst = max(worst, float((value != wanted).double().mean()))
        else:
            size = max(float(wanted.abs().max()), 1e-30)
            gap = float((value - wanted).abs().max()) / size
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def measure(make: Callable[[int, torch.device], list[Kernel]], classes: str, rounds: int,
            device: str) -> tuple[list[Line], torch.device]:
    """Lines for every number of classes, on one thread of a CPU, and the device they are from.

    Args:
        make: kernels with inputs for so many classes on a device.
        classes: numbers with commas.
        rounds: that count.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: classes that are no numbers, or no such device here.
    """
    from more.inference.predict import choose_device

    where = choose_device(device or "cpu")
    if where.type == "cpu":
        keep_freed_memory()  # as in a training, for the plain formulas as well
    with one_thread():
        return [line for count in numbers(classes, "--classes")
                for line in compare(make(count, where), rounds, where, classes=count)], where


def compare(kernels: list[Kernel], rounds: int, device: torch.device = CPU,
            **about: Any) -> list[Line]:
    """Lines of a table, one per kernel; results are held against each other before any timing.

    Args:
        kernels: with inputs on the device.
        rounds: that count.
        device: where they run.
        about: columns that all lines share.

    Raises:
        RuntimeError: ours and the plain formula differ.
    """
    with device:  # what the plain formulas make without naming a device
        return [_compare(kernel, rounds, device, about) for kernel in kernels]


def _compare(kernel: Kernel, rounds: int, device: torch.device, about: Line) -> Line:
    expected = kernel.plain()
    gap = difference(kernel.ours(), expected)
    whole = not any(value.is_floating_point() for value in expected.values())
    if not gap <= (LABELS_MAY_DIFFER if whole else kernel.tolerance):
        raise RuntimeError(f"{kernel.name}: the results differ by {gap:.2g}, so their times "
                           "say nothing")
    del expected
    seconds = alternate({"ours": lambda: block(kernel.ours, device),
                         "plain": lambda: block(kernel.plain, device)}, rounds)
    ours, plain = (peak_bytes(work, device) for work in (kernel.ours, kernel.plain))
    return {"what": kernel.name, **about, "ms": 1e3 * seconds["ours"],
            "plain ms": 1e3 * seconds["plain"], "ratio": seconds["plain"] / seconds["ours"],
            "MB": ours / 1e6, "plain MB": plain / 1e6, "MB ratio": ours / plain, "gap": gap}


def block(work: Callable[[], Any], device: torch.device = CPU) -> float:
    """Processor seconds of one of as many calls as `BLOCK` takes, at least two.

    The first does not count: it finds the caches as the other candidate left them.
    """
    spent(work, device)
    seconds = [spent(work, device)]
    while sum(seconds) < BLOCK:
        seconds.append(spent(work, device))
    return sum(seconds) / len(seconds)


def spent(work: Callable[[], Any], device: torch.device = CPU) -> float:
    """Processor seconds of one call: other processes on the machine do not count.

    On a GPU: seconds until it has finished.
    """
    clock = time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        clock = time.perf_counter
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def peak_bytes(work: Callable[[], Any], device: torch.device = CPU) -> int:
    """Most bytes that a call has allocated at once, its results and all temporaries included.

    Read from the allocator's own events (torch profiler); what lived before does not count.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [(event.start_ns(), event.nbytes()) for event in
              seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        most = max(most, live)
    return most


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers above 0 from "20,80".

    Raises:
        UserError: something else was given.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise UserError(f"{option} {text}: not a list of numbers", f"write for instance {option} "
                        "20,80")
    return found
