"""Pixels of a few images at all points that share a CRF: the function that workers execute.

Imports no torch, so that a worker stays small and starts fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from more.data.seeds import SeedItem, decode_seed, seed_probabilities
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.filtering import crf
from more.jobs.bookkeeping import clear_in_hand, failure_reason, note_in_hand
from more.refinement.image import Refinement, label_map
from more.refinement.mask_shard import allowed_tags
from more.refinement.plan import missing_engine, open_sets
from more.refinement.worker_memory import check_image

Cells = list[list[int]]
"""Pairs of cell and number of pixels; cell = true class · (K + 1) + label, label K = left out."""


@dataclass(frozen=True)
class CountSpec:
    """All that a worker needs for one task: paths and numbers, no arrays.

    Attributes:
        seeds, data: folders of the shard sets.
        digests: their content.
        out: folder of the search.
        name: of the task.
        ids: images to count.
        shards: numbers of the shards of both sets that hold them.
        hows: points with the same CRF; their engine is resolved, not "auto".
        keep_to_tags: seeds must hold no class outside the image's tags.
        skip: (id, reason) of images not to touch because they killed workers.
    """

    seeds: str
    data: str
    digests: tuple[str, str]
    out: str
    name: str
    ids: tuple[str, ...]
    shards: tuple[tuple[int, ...], tuple[int, ...]]
    hows: tuple[Refinement, ...]
    keep_to_tags: bool
    skip: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> Path:
        """Where the task notes the image it has in hand."""
        return Path(self.out) / self.name

    @property
    def how(self) -> Refinement:
        """The settings up to the CRF."""
        return self.hows[0]

    def missing_here(self) -> tuple[str, str] | None:
        """What this process lacks to run the CRF: the problem and its remedy; None: nothing."""
        return missing_engine(self.how)


@dataclass(frozen=True)
class CountReport:
    """Cells by image, one list a point; and the images that failed with the reason."""

    cells: dict[str, list[Cells]]
    failures: list[tuple[str, str]]


def count_task(spec: CountSpec) -> CountReport:
    """Count the images of a task; one that raises is left out and reported."""
    seeds, data = open_sets(spec)
    skip, cells, failures = dict(spec.skip), {}, []
    for image_id in spec.ids:
        if image_id in skip:
            failures.append((image_id, skip[image_id]))
            continue
        note_in_hand(spec.path, image_id)
        try:
            cells[image_id] = _count_image(spec, seeds, data, seeds.index_of(image_id))
        except Exception as error:  # reported with its reason; the others go on
            failures.append((image_id, failure_reason(error)))
    clear_in_hand(spec.path)
    return CountReport(cells, failures)


def _count_image(spec: CountSpec, seeds: ShardSet, data: ShardSet, row: int) -> list[Cells]:
    where, size = data.index_of(seeds.ids[row]), tuple(int(side) for side in seeds.sizes[row])
    item = decode_seed(seeds.blob("seed", row))
    allowed_tags(item, seeds.tags[row], spec.keep_to_tags)
    image, truth = data.image(where), data.mask(where)
    if image.shape[:2] != size:
        raise ValueError(f"image is {image.shape[:2]}, its seed was made for {size}")
    if truth is None or truth.shape != size:
        raise ValueError(f"true mask is {None if truth is None else truth.shape}, "
                         f"the image {size}")
    return [count_cells(truth, label, data.num_classes + 1)
            for label in labels(image, item, spec.hows)]


def labels(image: np.ndarray, item: SeedItem, hows: Sequence[Refinement]) -> list[np.ndarray]:
    """Labels of one image at points that share the CRF: those of `refine_item`, with one run.

    Args:
        image: [H, W, 3] uint8 RGB.
        item: its seed.
        hows: points that differ only in which pixels become 255.

    Returns:
        uint8 [H, W] for each point.

    Raises:
        ValueError: the CRF of this image needs more memory than a process can have.
    """
    first = hows[0]
    keys, probs = seed_probabilities(item, image.shape[:2], first.threshold)
    if len(keys) == 1:
        return [np.zeros(image.shape[:2], np.uint8) for _ in hows]
    check_image(crf.resolve_engine(first.engine), image.shape[0] * image.shape[1], len(keys))
    q = crf.refine(image, probs, first.params, first.engine)
    return [label_map(keys, probs, q, how)[0] for how in hows]


def count_cells(truth: np.ndarray, label: np.ndarray, num_classes: int) -> Cells:
    """Pixels per pair of true class and label.

    Args:
        truth: [H, W] uint8; values outside the classes (255 above all) do not count.
        label: [H, W] uint8; 255 = left out.
        num_classes: K, background included.

    Returns:
        The cells with pixels, rising.

    Raises:
        ValueError: a label that is neither a class nor 255.
    """
    counted = truth < num_classes
    given = label[counted].astype(np.int64)
    strange = given[(given >= num_classes) & (given != IGNORE)]
    if strange.size:
        raise ValueError(f"label {strange[0]} is outside 0..{num_classes - 1}")
    given[given == IGNORE] = num_classes
    index = truth[counted].astype(np.int64) * (num_classes + 1) + given
    pixels = np.bincount(index)
    return [[int(cell), int(pixels[cell])] for cell in np.flatnonzero(pixels)]
