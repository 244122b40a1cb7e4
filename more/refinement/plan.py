"""Which shards of masks a set of seeds becomes: one task each, and the sets that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from more import __version__
from more.data.shards.format import shard_name
from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few
from more.filtering.crf import available_engine, load_engine, resolve_engine
from more.jobs.ranks import Rank
from more.progress import console
from more.refinement.image import Refinement


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

    def missing_here(self) -> tuple[str, str] | None:
        """What this process lacks to run the CRF: the problem and its remedy; None: nothing."""
        return missing_engine(self.how)


def missing_engine(how: Refinement) -> tuple[str, str] | None:
    """Why the CRF of these settings cannot run in this process, and the remedy; None: it can."""
    try:
        load_engine(resolve_engine(how.engine))
    except UserError as error:
        return error.message, "install the same requirements there, or choose another --engine"
    return None


def plan(source: ShardSet, images: ShardSet, out: Path, how: Refinement,
         rows_per_shard: int) -> list[ShardSpec]:
    """The shards of the masks set, a pure function of the inputs and parameters.

    Args:
        source: the seeds.
        images: their images.
        out: folder of the masks set.
        how: with its engine resolved, not "auto".
        rows_per_shard: as in `refine`.

    Returns:
        A task for each shard.

    Raises:
        UserError: a threshold for seeds with a background of their own.
    """
    recorded = source.manifest.provenance
    made = {**recorded, **(recorded.get("parameters") or {})}
    how.check_seeds(made.get("map"))
    digests = source.manifest.digest, images.manifest.digest
    provenance: dict[str, Any] = {
        "tool": "more refine", "version": __version__, "stage": "refine", **how.record(),
        "rows_per_shard": rows_per_shard,
        "seeds": recorded, "seeds_digest": digests[0], "data": digests[1],
    }
    decoder = made.get("map") == "decoder"
    free = made.get("tags") == "predicted" or (decoder and made.get("tags") != "true")
    folders = [str(Path(folder).absolute()) for folder in (source.path, images.path, out)]
    specs = []
    for number, start in enumerate(range(0, len(source), rows_per_shard)):
        rows = range(start, min(start + rows_per_shard, len(source)))
        specs.append(ShardSpec(*folders, digests, number, rows.start, rows.stop,
                               tuple(source.ids[rows.start:rows.stop]),
                               shards_of(source, images, rows), how, not free, provenance))
    return specs


def shards_of(source: ShardSet, images: ShardSet, rows: Sequence[int]
              ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the shards of seeds and of images that hold some rows of the seeds.

    Args:
        source: the seeds.
        images: their images.
        rows: of the seeds.

    Returns:
        The numbers of both, rising.
    """
    seeds = {source.locate(row)[0] for row in rows}
    data = {images.locate(images.index_of(source.ids[row]))[0] for row in rows}
    return tuple(sorted(seeds)), tuple(sorted(data))


def open_pair(seeds: Path, data: Path, rank: Rank) -> tuple[ShardSet, ShardSet]:
    """Both sets, checked to belong together; ranks share out the hashing of their files.

    Args:
        seeds: folder of the seeds.
        data: folder of the images.
        rank: this process among its peers.

    Returns:
        The seeds and the images.

    Raises:
        UserError: other classes, or images that lack.
    """
    share = rank.number, rank.world
    source = ShardSet(seeds, kind="seeds", check="full", share=share)
    images = ShardSet(data, kind="images", check="full", share=share)
    if source.class_names != images.class_names:
        raise UserError(f"{seeds} has {source.num_classes} classes, {data} {images.num_classes}, "
                        "or they differ in name or order",
                        fix="give the image set that the seeds were made from")
    held = set(images.ids)
    strangers = [image_id for image_id in source.ids if image_id not in held]
    if strangers:
        raise UserError(f"{data} lacks {len(strangers)} of the {len(source)} images of {seeds}: "
                        f"{first_few(strangers)}",
                        fix="give the image set that the seeds were made from")
    return source, images


def announced_engine(engine: str) -> str:
    """The engine that serves, ready for work; where it was chosen here, say which and why."""
    resolved = resolve_engine(engine)
    if engine == "auto":
        console.print(f"dense CRF: engine {resolved} ({available_engine()[1]})", highlight=False,
                      markup=False)
    load_engine(resolved)
    return resolved


def open_sets(spec: Sources) -> tuple[ShardSet, ShardSet]:
    """Seeds and images of a task: the shards that it names."""
    return (_open_set(spec.seeds, "seeds", spec.digests[0], spec.shards[0]),
            _open_set(spec.data, "images", spec.digests[1], spec.shards[1]))


@lru_cache(maxsize=4)
def _open_set(path: str, kind: str, digest: str, only: tuple[int, ...]) -> ShardSet:
    """Shards of a set, opened once in this process for tasks that follow each other.

    Args:
        path: folder of the set.
        kind: "seeds" or "images".
        digest: of its content.
        only: numbers of the shards to open.

    Returns:
        The set.

    Raises:
        UserError: its content is not that of `digest`.
    """
    if read_manifest(Path(path)).digest != digest:
        raise UserError(f"{path}: changed while it was being read", fix="start again")
    return ShardSet(path, kind=kind, only=only)
