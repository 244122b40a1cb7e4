"""The CRF engines against each other: time, equal labels and scores."""

from __future__ import annotations

from functools import partial

import numpy as np

from more.bench.refine_memory import ENGINES
from more.bench.refine_rates import HOW, Arrays, Pair, load_arrays, spent
from more.bench.tables import Line
from more.data.shards.reader import ShardSet
from more.evaluation.metrics import confusion_matrix, scores
from more.filtering import crf


def engine_times(pair: Pair, rounds: int) -> list[Line]:
    """Engines in turn on every image of a set, each with its own labels.

    Returns:
        A line for each engine: processor seconds per image, how often the first engine's time
        holds it, pixels with the first one's label (mean and worst image), and mIoU where the
        images have true masks.
    """
    arrays, truths = load_arrays(pair), _true_masks(pair)
    seconds = dict.fromkeys(ENGINES, 0.0)
    labels: dict[str, list[np.ndarray]] = {}
    for engine in ENGINES:  # libraries load and memory comes
        _run(arrays[0], engine, [])
    for _ in range(rounds):
        labels = {engine: [] for engine in ENGINES}
        for number, item in enumerate(arrays):
            # Neither engine always meets what the other has left in the caches.
            for engine in ENGINES if number % 2 else ENGINES[::-1]:
                made: list[np.ndarray] = []
                seconds[engine] += spent(partial(_run, item, engine, made)).cpu
                labels[engine].append(item.keys[made[0].argmax(0)])
    runs = rounds * len(arrays)
    return [_line(engine, seconds, labels, truths, runs, len(ShardSet(pair[0]).class_names))
            for engine in ENGINES]


def _run(item: Arrays, engine: str, made: list[np.ndarray]) -> None:
    made.append(crf.refine(item.image, item.probs, HOW.params, engine))


def _line(engine: str, seconds: dict[str, float], labels: dict[str, list[np.ndarray]],
          truths: list[np.ndarray], runs: int, classes: int) -> Line:
    equal = [float((own == usual).mean())
             for own, usual in zip(labels[engine], labels[ENGINES[0]], strict=True)]
    line: Line = {"engine": engine, "CPU s per image": seconds[engine] / runs,
                  "times faster": seconds[ENGINES[0]] / seconds[engine],
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
