"""Which images the settings are tried on: labelled ones, spread over the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from more.data.shards.reader import ShardSet
from more.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Chosen images.

    Attributes:
        rows: rows of the seeds set, rising.
        ids: their names.
        per_class: number of images that show each class, by its name.
    """

    rows: list[int]
    ids: list[str]
    per_class: dict[str, int]

    @property
    def absent(self) -> list[str]:
        """Classes that no image of the sample shows."""
        return [name for name, count in self.per_class.items() if not count]


def choose_sample(seeds: ShardSet, data: ShardSet, count: int, seed: int) -> Sample:
    """Images with a true mask, the same ones for the same sets, count and seed.

    The class with the fewest images so far picks next, so every class is there as far as the
    set and the count allow; images without any class come last.

    Args:
        seeds: the set to tune on.
        data: its images and true masks.
        count: images to choose; all labelled ones where there are fewer.
        seed: of the order in which classes find their images.

    Returns:
        The images.

    Raises:
        UserError: fewer than one image asked for, or no image has a true mask.
    """
    if count < 1:
        raise UserError(f"--images {count}", fix="give 1 or more")
    where = np.array([data.index_of(image_id) for image_id in seeds.ids])
    tags = data.tags[where] > 0
    order = np.random.default_rng(seed).permutation(len(seeds))
    rows = sorted(_pick(tags, order, count, lambda row: bool(data.blob("mask", where[row]))))
    if not rows:
        raise UserError(f"{data.path}: no image has a true mask",
                        fix="tuning needs labelled images: build the image set with masks")
    shown = tags[rows].sum(0)
    return Sample(rows, [seeds.ids[row] for row in rows],
                  {name: int(n) for name, n in zip(data.class_names, shown, strict=True)})


def _pick(tags: np.ndarray, order: np.ndarray, count: int,
          labelled: Callable[[int], bool]) -> list[int]:
    """Rows of `tags` [N, C], bool; each candidate is asked for its mask at most once."""
    # A queue a class, and one more for the images of no class.
    queues = [iter(order[tags[order, c]]) for c in range(tags.shape[1])]
    rest = iter(order[~tags[order].any(1)])
    counts, seen, rows = np.zeros(len(queues)), set(), []
    while len(rows) < count:
        left = np.isfinite(counts).any()
        number = int(counts.argmin()) if left else -1
        row = next((int(r) for r in (queues[number] if left else rest) if int(r) not in seen), None)
        if row is None:
            if not left:
                break
            counts[number] = np.inf  # this class has no further image
            continue
        seen.add(row)
        if labelled(row):
            rows.append(row)
            counts[tags[row]] += 1
    return rows
