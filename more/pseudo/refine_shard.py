"""One shard of masks from a run of seeds: the function that CRF workers execute.

Imports no torch, so that a worker with pydensecrf stays small and starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from more.data.shards.codec import encode_mask
from more.data.shards.format import IGNORE, shard_name, sidecar_path
from more.data.shards.manifest import ShardEntry
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.filtering import crf
from more.filtering.crf import CRFParams
from more.pseudo.crumbs import clear_crumb, drop_failures, leave_crumb, write_failures
from more.pseudo.seeds import SeedItem, decode_seed, seed_probabilities


@dataclass(frozen=True)
class ShardSpec:
    """All that a worker needs for one shard of masks: paths and numbers, no arrays.

    Attributes:
        seeds, data, out: folders of the shard sets.
        digests: content of seeds and data, so that no worker serves a set it opened before.
        number, start, stop: number of the shard, and its rows in the seeds set.
        params, engine, ignore_below: how to refine.
        keep_to_tags: seeds must hold no class outside the image's tags.
        provenance: recorded with the shard.
        skip: (id, reason) of images not to touch because they killed workers.
    """

    seeds: str
    data: str
    out: str
    digests: tuple[str, str]
    number: int
    start: int
    stop: int
    params: CRFParams
    engine: str
    ignore_below: float | None
    keep_to_tags: bool
    provenance: dict[str, Any]
    skip: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> Path:
        """Final name of the shard."""
        return Path(self.out) / shard_name(self.number)

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.stop - self.start


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard: its entry (None when no image succeeded) and the failures."""

    entry: ShardEntry | None
    failures: list[tuple[str, str]]


def refine_shard(spec: ShardSpec) -> ShardReport:
    """Refine the images of a shard and write it; the same bytes however often it is called.

    An image that raises is left out and reported. What concerns the whole shard (a missing
    file, a full disk) is raised.
    """
    seeds = _open(spec.seeds, "seeds", spec.digests[0])
    data = _open(spec.data, "images", spec.digests[1])
    skip, failures = dict(spec.skip), []
    writer = ShardWriter(spec.path, "masks", seeds.class_names, spec.provenance)
    for row in range(spec.start, spec.stop):
        image_id = seeds.ids[row]
        if image_id in skip:
            failures.append((image_id, skip[image_id]))
            continue
        leave_crumb(spec.path, image_id)
        try:
            _add_image(writer, spec, seeds, data, row)
        except Exception as error:  # recorded with its reason; the others go on
            failures.append((image_id, _reason(error)))
    clear_crumb(spec.path)
    return ShardReport(_finish(writer, spec.path, failures), failures)


def refine_item(image: np.ndarray, item: SeedItem, params: CRFParams, engine: str = "auto",
                ignore_below: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of one image (method §4.12).

    Args:
        image: [H, W, 3] uint8 RGB.
        item: its seed.
        params, engine: as in `more.filtering.crf.refine`.
        ignore_below: label 255 where the confidence is lower; None keeps all.

    Returns:
        label uint8 [H, W]: 0, a class of the seed, or 255; confidence uint8 [H, W]: round(255 Q)
        of the best label. Without classes everything is background with confidence 255.
    """
    keys, probs = seed_probabilities(item, image.shape[:2])
    if len(keys) == 1:
        return np.zeros(image.shape[:2], np.uint8), np.full(image.shape[:2], 255, np.uint8)
    q = crf.refine(image, probs, params, engine)
    label, best = keys[q.argmax(0)].astype(np.uint8), q.max(0)
    if ignore_below is not None:
        label[best < ignore_below] = IGNORE
    return label, np.rint(best.clip(0, 1) * 255).astype(np.uint8)


def _add_image(writer: ShardWriter, spec: ShardSpec, seeds: ShardSet, data: ShardSet,
               row: int) -> None:
    image_id, size = seeds.ids[row], tuple(int(side) for side in seeds.sizes[row])
    item = decode_seed(seeds.blob("seed", row))
    tags = _allowed(item, seeds.tags[row], spec.keep_to_tags)
    image = data.image(data.index_of(image_id))
    if image.shape[:2] != size:
        raise ValueError(f"image is {image.shape[:2]}, its seed was made for {size}")
    label, confidence = refine_item(image, item, spec.params, spec.engine, spec.ignore_below)
    writer.add(image_id, tags, size, mask=encode_mask(label), confidence=encode_mask(confidence))


def _allowed(item: SeedItem, tags: np.ndarray, keep_to_tags: bool) -> np.ndarray:
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


def _finish(writer: ShardWriter, path: Path, failures: list) -> ShardEntry | None:
    """Write the shard. Its failures are on disk before it, so that a kill cannot hide them."""
    if failures:
        write_failures(path, failures)
    if not len(writer):
        sidecar_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return None
    entry = writer.close()
    if not failures:
        drop_failures(path)
    return entry


@lru_cache(maxsize=2)
def _open(path: str, kind: str, digest: str) -> ShardSet:
    shards = ShardSet(path, kind=kind)
    if shards.manifest.digest != digest:
        raise UserError(f"{path}: changed while it was being read", fix="start again")
    return shards


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {error}"
