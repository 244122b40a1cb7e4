"""The CRF engines against each other: time, equal labels, scores, and growth with the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from more.bench.measure import Line, alternate
from more.bench.refine_sets import draw_maps
from more.bench.refine_worker import COMPARED, HOW, Arrays, Pair, load_arrays, spent
from more.data.seeds import SeedItem, seed_probabilities
from more.data.shards.reader import ShardSet
from more.evaluation.metrics import confusion_matrix, scores
from more.filtering import crf

LABELS = (2, 4, 21, 81)
SUBSET = (2, 4)  # labels that an image shows, of all
ENGINES = ("pydensecrf", "fast", "lattice")


def engine_times(pair: Pair, rounds: int) -> list[Line]:
    """Engines in turn on every image of a set, each with its own labels.

    Returns:
        A line for each engine: processor seconds per image, how often the first engine's time
        holds it, pixels with the first one's label (mean and worst image), and mIoU where the
        images have true masks.
    """
    arrays, truths = load_arrays(pair), _true_masks(pair)
    seconds = dict.fromkeys(COMPARED, 0.0)
    labels: dict[str, list[np.ndarray]] = {}
    for engine in COMPARED:  # libraries load and memory comes
        _run(arrays[0], engine, [])
    for _ in range(rounds):
        labels = {engine: [] for engine in COMPARED}
        for number, item in enumerate(arrays):
            # Neither engine always meets what the other has left in the caches.
            for engine in COMPARED if number % 2 else COMPARED[::-1]:
                made: list[np.ndarray] = []
                seconds[engine] += spent(partial(_run, item, engine, made)).cpu
                labels[engine].append(item.keys[made[0].argmax(0)])
    runs = rounds * len(arrays)
    return [_line(engine, seconds, labels, truths, runs, len(ShardSet(pair[0]).class_names))
            for engine in COMPARED]


def _run(item: Arrays, engine: str, made: list[np.ndarray]) -> None:
    made.append(crf.refine(item.image, item.probs, HOW.params, engine))


def _line(engine: str, seconds: dict[str, float], labels: dict[str, list[np.ndarray]],
          truths: list[np.ndarray], runs: int, classes: int) -> Line:
    equal = [float((own == usual).mean())
             for own, usual in zip(labels[engine], labels[COMPARED[0]], strict=True)]
    line: Line = {"engine": engine, "CPU s per image": seconds[engine] / runs,
                  "times faster": seconds[COMPARED[0]] / seconds[engine],
                  "labels equal %": 100 * float(np.mean(equal)), "worst image %": 100 * min(equal)}
    if truths:
        matrix = sum(confusion_matrix(truth, own, classes + 1)
                     for truth, own in zip(truths, labels[engine], strict=True))
        line["mIoU %"] = 100 * scores(matrix).miou
    return line


def _true_masks(pair: Pair) -> list[np.ndarray]:
    """Of all images of a set, in the order of its seeds; none where one is missing."""
    seeds, images = ShardSet(pair[0]), ShardSet(pair[1])
    found = [images.mask(images.index_of(image_id)) for image_id in seeds.ids]
    return [] if any(mask is None for mask in found) else found


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
            _name(*case): partial(_run_labels, images, case, found) for case in cases}
        seconds = alternate(candidates, rounds)
        for count in LABELS[2:]:  # fewer labels shown take as long: only their labels are needed
            _run_labels(images, (count, min(SUBSET), ENGINES[0]), found)
    finally:
        torch.set_num_threads(threads)
    return ([_engine_line(case, seconds, found) for case in cases],
            [_subset_line(shown, count, seconds, found)
             for count in LABELS[2:] for shown in SUBSET])


def _run_labels(images: Sequence[np.ndarray], case: tuple[int, int, str],
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
