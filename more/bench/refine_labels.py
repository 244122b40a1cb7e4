"""How the CRF's time grows with labels, in each engine, and what leaving labels out saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from more.bench.measure import alternate
from more.bench.refine_rates import HOW, spent
from more.bench.refine_sets import draw_maps
from more.bench.tables import Line
from more.data.seeds import SeedItem, seed_probabilities
from more.filtering import crf

LABELS = (2, 4, 21, 81)
SUBSET = (2, 4)  # labels that an image shows, of all
ENGINES = ("pydensecrf", "fast", "lattice")


def label_times(images: Sequence[np.ndarray], rounds: int) -> tuple[list[Line], list[Line]]:
    """Both tables.

    Args:
        images: [H, W, 3] uint8 each.
        rounds: rounds that count; every round runs all engines and numbers of labels.

    Returns:
        Lines by labels and engine; lines that compare the labels an image shows with all.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker
    try:
        found: dict[tuple[int, int, str], list[np.ndarray]] = {}
        cases = [(count, min(count, max(SUBSET)), engine)
                 for count in LABELS for engine in ENGINES]
        candidates: dict[str, Callable[[], float]] = {
            _name(*case): partial(_run, images, case, found) for case in cases}
        seconds = alternate(candidates, rounds)
        for count in LABELS[2:]:  # fewer labels shown take as long: only their labels are needed
            _run(images, (count, min(SUBSET), ENGINES[0]), found)
    finally:
        torch.set_num_threads(threads)
    return ([_engine_line(case, seconds, found) for case in cases],
            [_subset_line(shown, count, seconds, found)
             for count in LABELS[2:] for shown in SUBSET])


def _run(images: Sequence[np.ndarray], case: tuple[int, int, str],
         found: dict[tuple[int, int, str], list[np.ndarray]]) -> float:
    """Processor seconds per image (all is one thread); the labels go to `found`."""
    count, shown, engine = case
    seconds, found[case] = 0.0, []
    for number, image in enumerate(images):
        probs = _probabilities(number, shown, count, image.shape[:2])
        seconds += spent(lambda: found[case].append(  # called at once
            crf.refine(image, probs, HOW.params, engine).argmax(0))).cpu  # noqa: B023
    return seconds / len(images)


def _probabilities(number: int, shown: int, count: int, size: tuple[int, int]) -> np.ndarray:
    """[count, H, W]: background, the classes that the image shows, and zeros for the others."""
    maps = draw_maps(np.random.default_rng([2, number]), max(SUBSET) - 1)[:shown - 1]
    probs = np.zeros((count, *size), np.float32)
    probs[:shown] = seed_probabilities(SeedItem(np.arange(1, shown), maps), size)[1]
    return probs


def _name(count: int, shown: int, engine: str) -> str:
    return f"{engine}, {shown} of {count}"


def _engine_line(case: tuple[int, int, str], seconds: dict[str, float], found: dict) -> Line:
    count, shown, engine = case
    value, usual = seconds[_name(*case)], (count, shown, ENGINES[0])
    return {"labels": count, "engine": engine, "CPU s per image": value, "images/s": 1 / value,
            "time of pydensecrf ×": value / seconds[_name(*usual)],
            "labels equal %": _equal(found[case], found[usual])}


def _subset_line(shown: int, count: int, seconds: dict[str, float], found: dict) -> Line:
    some = seconds[_name(shown, shown, ENGINES[0])]
    every = seconds[_name(count, max(SUBSET), ENGINES[0])]
    return {"shown": shown, "of all": count, "CPU s, shown only": some, "CPU s, all": every,
            "times faster": every / some,
            "labels equal %": _equal(found[shown, shown, ENGINES[0]],
                                     found[count, shown, ENGINES[0]])}


def _equal(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Percent of pixels with the same label."""
    return 100 * float(np.mean([(x == y).mean() for x, y in zip(a, b, strict=True)]))
