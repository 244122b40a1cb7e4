"""One shard of masks from a run of seeds: the function that CRF workers execute.

Imports no torch, so that a worker stays small and starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from more.data.seeds import SeedItem, decode_seed
from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import ShardEntry, read_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.jobs.failures import failure_reason, finish_shard
from more.jobs.in_hand import clear_crumb, leave_crumb
from more.refine.groups import Rows, lots
from more.refine.images import refine_items
from more.refine.retry import again_path, copied_rows
from more.refine.settings import Refinement


class Sources(Protocol):
    """The inputs that a task names, see `ShardSpec`."""

    seeds: str
    data: str
    digests: tuple[str, str]
    shards: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ShardSpec:
    """All that a worker needs for one shard of masks: paths and numbers, no arrays.

    Attributes:
        seeds, data, out: folders of the shard sets.
        digests: content of seeds and data, so that no worker serves a set it opened before.
        number, start, stop: number of the shard, and its rows in the seeds set.
        ids: of these rows.
        shards: numbers of the shards of seeds and of data that hold them; a worker opens no other.
        how: how to refine; its engine is resolved, not "auto".
        keep_to_tags: seeds must hold no class outside the image's tags.
        provenance: recorded with the shard.
        again: the images that failed before, where only these are to be tried; the rows of the
            others are copied from the shard that is there.
        skip: (id, reason) of images not to touch because they killed workers.
        device, batch: where the CRF runs, and how many images of one size and number of labels
            the lattice takes at a time. Neither decides what a mask holds.
    """

    seeds: str
    data: str
    out: str
    digests: tuple[str, str]
    number: int
    start: int
    stop: int
    ids: tuple[str, ...]
    shards: tuple[tuple[int, ...], tuple[int, ...]]
    how: Refinement
    keep_to_tags: bool
    provenance: dict[str, Any]
    again: tuple[str, ...] = ()
    skip: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    batch: int = 1

    @property
    def path(self) -> Path:
        """Final name of the shard."""
        return Path(self.out) / shard_name(self.number)

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.stop - self.start

    @property
    def tried(self) -> tuple[str, ...]:
        """Ids of the images to refine."""
        return self.again or self.ids


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard: its entry (None when nothing was written) and the failures."""

    entry: ShardEntry | None
    failures: list[tuple[str, str]]


def refine_shard(spec: ShardSpec) -> ShardReport:
    """Refine the images of a shard and write it; the same bytes however often it is called.

    An image that raises is left out and reported. A second try (`ShardSpec.again`) leaves the
    shard as it is: the new one lies beside it (see `second_try`), none where no image succeeded.
    What concerns the whole shard (a missing file, a full disk) is raised.
    """
    seeds, data = open_sets(spec)
    skip, rows, failed = dict(spec.skip), Rows(), {}
    for lot in lots(spec, seeds):
        lot = [row for row in lot if seeds.ids[row] not in skip]
        if lot:
            failed.update(_add_lot(rows, spec, seeds, data, lot))
    clear_crumb(spec.path)
    failures = [(image_id, failed.get(image_id) or skip[image_id])
                for image_id in spec.tried if image_id not in rows.held]
    path = spec.path
    if spec.again:
        if not rows.held:
            return ShardReport(None, failures)
        path = again_path(spec.path)
        if len(spec.again) < spec.rows:
            for image_id, tags, size, payloads in copied_rows(spec.path, spec.again):
                rows.add(image_id, tags, size, **payloads)
    writer = ShardWriter(path, "masks", seeds.class_names, spec.provenance)
    for image_id in spec.ids:
        if image_id in rows.held:
            rows.write(image_id, writer)
    return ShardReport(finish_shard(writer, path, failures), failures)


def _add_lot(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet,
             lot: list[int]) -> dict[str, str]:
    """Refine images together, and one by one if that fails; reasons by id of those that failed."""
    if len(lot) > 1:
        leave_crumb(spec.path, seeds.ids[lot[0]])
        try:
            _add_images(rows, spec, seeds, data, lot)
            return {}
        except Exception:  # one of them, or too many for the memory: alone it will show
            pass
    failed = {}
    for row in lot:
        leave_crumb(spec.path, seeds.ids[row])
        try:
            _add_image(rows, spec, seeds, data, row)
        except Exception as error:  # recorded with its reason; the others go on
            failed[seeds.ids[row]] = failure_reason(error)
    return failed


def _add_image(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet, row: int) -> None:
    _add_images(rows, spec, seeds, data, [row])


def _add_images(rows: Rows, spec: ShardSpec, seeds: ShardSet, data: ShardSet,
                lot: list[int]) -> None:
    images, items, tags = [], [], []
    for row in lot:
        items.append(decode_seed(seeds.blob("seed", row)))
        tags.append(allowed_tags(items[-1], seeds.tags[row], spec.keep_to_tags))
        images.append(data.image(data.index_of(seeds.ids[row])))
        size = tuple(int(side) for side in seeds.sizes[row])
        if images[-1].shape[:2] != size:
            raise ValueError(f"image is {images[-1].shape[:2]}, its seed was made for {size}")
    made = refine_items(images, items, spec.how, spec.device)
    for row, own, (label, confidence) in zip(lot, tags, made, strict=True):
        rows.add(seeds.ids[row], own, label.shape, mask=encode_mask(label),
                 confidence=encode_mask(confidence))


def allowed_tags(item: SeedItem, tags: np.ndarray, keep_to_tags: bool) -> np.ndarray:
    """Tags of the mask: the image's, or the seed's classes where it was made without tags."""
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


def open_sets(spec: Sources) -> tuple[ShardSet, ShardSet]:
    """Seeds and images of a task: the shards that it names."""
    return (_open_set(spec.seeds, "seeds", spec.digests[0], spec.shards[0]),
            _open_set(spec.data, "images", spec.digests[1], spec.shards[1]))


@lru_cache(maxsize=4)
def _open_set(path: str, kind: str, digest: str, only: tuple[int, ...]) -> ShardSet:
    """Shards of a set, opened once in this process for tasks that follow each other.

    Raises:
        UserError: its content is not that of `digest`.
    """
    if read_manifest(Path(path)).digest != digest:
        raise UserError(f"{path}: changed while it was being read", fix="start again")
    return ShardSet(path, kind=kind, only=only)
