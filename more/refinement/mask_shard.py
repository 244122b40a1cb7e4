"""One shard of masks from a run of seeds: the function that CRF workers execute.

Imports no torch, so that a worker stays small and starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from more.data.seeds import SeedItem, decode_seed
from more.data.shards.codec import encode_mask
from more.data.shards.manifest import ShardEntry
from more.data.shards.reader import ShardSet
from more.jobs.bookkeeping import clear_in_hand, failure_reason, note_in_hand
from more.jobs.rows import Rows
from more.refinement.image import refine_items
from more.refinement.plan import ShardSpec, open_sets


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard: its entry (None when nothing was written) and the failures."""

    entry: ShardEntry | None
    failures: list[tuple[str, str]]


def refine_shard(spec: ShardSpec) -> ShardReport:
    """Refine the images of a shard and write it; the same bytes however often it is called.

    An image that raises is left out and reported. A second try (`ShardSpec.again`) leaves the
    shard as it is, see `Rows.finish`. What concerns the whole shard (a missing file, a full disk)
    is raised.

    Args:
        spec: the task.

    Returns:
        What became of it.
    """
    seeds, data = open_sets(spec)
    skip, rows, failed = dict(spec.skip), Rows(spec.ids, spec.again), {}
    for group in groups(spec, seeds):
        group = [row for row in group if seeds.ids[row] not in skip]
        if group:
            failed.update(_add_group(rows, spec, seeds, data, group))
    clear_in_hand(spec.path)
    failures = [(image_id, failed.get(image_id) or skip[image_id])
                for image_id in spec.tried if image_id not in rows.held]
    entry = rows.finish(spec.path, "masks", seeds.class_names, spec.provenance, failures)
    return ShardReport(entry, failures)


def groups(spec: ShardSpec, seeds: ShardSet) -> list[list[int]]:
    """Rows to refine together: of one image size and one number of labels.

    Single rows where nothing is gained, and after a death of a worker, to find its image.

    Args:
        spec: the task.
        seeds: the set that it reads.

    Returns:
        Rows of `seeds`, in groups of at most `spec.batch`.
    """
    rows = [seeds.index_of(image_id) for image_id in spec.tried]
    if spec.how.engine != "lattice" or spec.batch == 1 or spec.skip:
        return [[row] for row in rows]
    alike: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        size = tuple(int(side) for side in seeds.sizes[row])
        alike.setdefault((*size, _labels(seeds, row)), []).append(row)
    return [group[start:start + spec.batch] for group in alike.values()
            for start in range(0, len(group), spec.batch)]


def _labels(seeds: ShardSet, row: int) -> int:
    """Number of labels of a seed, background included; 0 where it cannot be read."""
    try:
        keys = decode_seed(seeds.blob("seed", row)).keys
    except Exception:  # reported when its turn comes
        return 0
    return len(keys) + (not len(keys) or keys[0] != 0)


def _add_group(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet,
               group: list[int]) -> dict[str, str]:
    """Refine images together, and one by one if that fails; reasons by id of those that failed."""
    if len(group) > 1:
        note_in_hand(spec.path, seeds.ids[group[0]])
        try:
            _add_images(rows, spec, seeds, data, group)
            return {}
        except Exception:  # one of them, or too many for the memory: alone it will show
            pass
    failed = {}
    for row in group:
        note_in_hand(spec.path, seeds.ids[row])
        try:
            _add_image(rows, spec, seeds, data, row)
        except Exception as error:  # recorded with its reason; the others go on
            failed[seeds.ids[row]] = failure_reason(error)
    return failed


def _add_image(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet, row: int) -> None:
    _add_images(rows, spec, seeds, data, [row])


def _add_images(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet,
                group: list[int]) -> None:
    images, items, tags = [], [], []
    for row in group:
        items.append(decode_seed(seeds.blob("seed", row)))
        tags.append(allowed_tags(items[-1], seeds.tags[row], spec.keep_to_tags))
        images.append(data.image(data.index_of(seeds.ids[row])))
        size = tuple(int(side) for side in seeds.sizes[row])
        if images[-1].shape[:2] != size:
            raise ValueError(f"image is {images[-1].shape[:2]}, its seed was made for {size}")
    made = refine_items(images, items, spec.how, spec.device)
    for row, own, (label, confidence) in zip(group, tags, made, strict=True):
        rows.add(seeds.ids[row], own, label.shape, mask=encode_mask(label),
                 confidence=encode_mask(confidence))


def allowed_tags(item: SeedItem, tags: np.ndarray, keep_to_tags: bool) -> np.ndarray:
    """Tags of the mask: the image's, or the seed's classes where it was made without tags.

    Args:
        item: the seed.
        tags: [C] of the image, zeros and ones for the C classes.
        keep_to_tags: the seed must hold no class outside the tags.

    Returns:
        [C], zeros and ones.

    Raises:
        ValueError: a class that the set does not have, or one outside the tags.
    """
    classes = item.keys[item.keys > 0].astype(int) - 1
    if len(classes) and classes.max() >= len(tags):
        raise ValueError(f"seed holds class {classes.max() + 1} of {len(tags)}")
    if keep_to_tags:
        if not tags[classes].all():
            raise ValueError(f"seed holds classes {(classes + 1).tolist()}, "
                             f"the image's tags are {(np.flatnonzero(tags) + 1).tolist()}")
        return tags
    own = np.zeros_like(tags)
    own[classes] = 1
    return own
