"""From a checkpoint to seed shards: CAM, LAM, their fusion, decoder probabilities.

Each rank owns whole shards of the data set; every map kind becomes a shard set of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import more
from more.config.load import changed
from more.config.schema import Config
from more.data.shards.format import make_folder, remove_temporaries, shard_name
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import ShardEntry
from more.data.shards.reader import ShardSet
from more.device import local_device, usable_cores
from more.errors import UserError
from more.inference.localizer import Localizer, Request
from more.inference.seed_shard import SeedShards
from more.inference.trained import load_run, weights_digest
from more.jobs.resume import PlannedSet, finish_set, finished_beside_others, images_to_try
from more.jobs.retry import swap
from more.progress import Tally, Tracker, track

THREADS = 4  # decode about 400 images a second, more than a GPU takes


def localize(run: Path, data: Path, out: Path, request: Request, which: str = "latest",
             rank: int = 0, world: int = 1, device: torch.device | None = None,
             overrides: Sequence[str] = ()) -> Tally:
    """Write seed shards of a data set; finished shards are skipped.

    Args:
        run: run folder with a checkpoint, or a file of `more export-weights`.
        data: image shards.
        out: seed shards; with several maps, a sub-folder for each.
        request: what to compute.
        which: "latest" or a checkpoint folder.
        rank: this process takes shards rank, rank + world, …
        world: number of such processes.
        device: where to compute; None: this process's CUDA device if there is one, else CPU.
        overrides: `"inference.key=value"` and `"precision=value"`, in place of the run's.

    Returns:
        Counts of images of this process's shards. One that cannot be decoded, or whose maps are
        not finite, gets no row: it is listed with the reason in the manifest's `extra.failures`,
        and the next run tries it alone again.

    Raises:
        UserError: run and data do not fit, or `out` holds seeds made with other parameters.
    """
    source = ShardSet(data, kind="images", check="full", share=(rank, world))
    config, network, path = load_run(run, which)
    trained, config = config, changed(config, overrides, "inference", "precision")
    if source.num_classes != config.model.num_classes:
        raise UserError(f"{data} has {source.num_classes} classes, the run "
                        f"{config.model.num_classes}", "use the run's own data set")
    device = device or local_device()
    localizer = Localizer(config, network.to(device), request, device)
    folders = {kind: out / kind if len(request.maps) > 1 else out for kind in request.maps}
    provenance = {kind: {**_provenance(kind, config, source, path, request),
                         **_other_precision(trained, localizer)} for kind in folders}
    tally = Tally("images")
    own = range(rank, len(source.shard_rows), world)
    with _locks(list(folders.values()), rank, world):
        _swap(folders, own, world == 1)  # what a killed run left
        done = {kind: finished_beside_others(folders[kind], provenance[kind]) for kind in folders}
        with (track(len(source), "localize", disable=rank != 0) as bar,
              ThreadPoolExecutor(min(THREADS, usable_cores()), "decode") as pool):
            shards = SeedShards(localizer, source, folders, provenance, pool)
            for shard in own:
                _complete(shards, shard, done, tally, bar)
        _swap(folders, own, world == 1)
        finish(folders, provenance, source, world == 1)
    return tally


def _swap(folders: dict[str, Path], numbers: Iterable[int], alone: bool) -> None:
    """Put finished second tries of these shards in their place."""
    for folder in folders.values():
        swap([folder / shard_name(number) for number in numbers], alone)


def _complete(shards: SeedShards, shard: int, done: dict[str, dict[str, ShardEntry]],
              tally: Tally, bar: Tracker) -> None:
    """Make what is missing of a shard in all kinds of maps, and count its images."""
    missing, again = _lacking(shards, shard, done)
    tried = len(shards.tried(shard, missing, again))
    skipped = len(shards.source.rows_of(shard)) - tried
    tally.skip(skipped)
    bar.advance(skipped)
    if not tried:
        return
    failures = shards.write(shard, missing, again, bar.advance)
    for image_id, why in failures:
        tally.fail(image_id, why)
        bar.note(f"failed: {image_id}: {why}")
    tally.ok(tried - len(failures))


def _lacking(shards: SeedShards, shard: int, done: dict[str, dict[str, ShardEntry]]
             ) -> tuple[list[str], dict[str, list[str]]]:
    """Kinds of maps in which a shard is to be made, and by kind the images to try again."""
    missing, again = [], {}
    rows = len(shards.source.rows_of(shard))
    for kind in done:
        wanted = images_to_try(done[kind].get(shard_name(shard)), rows, shards.path(kind, shard))
        if wanted is None:
            missing.append(kind)
        elif wanted:
            again[kind] = wanted
    return missing, again


def finish(folders: dict[str, Path], provenance: dict[str, dict[str, Any]],
           source: ShardSet, alone: bool = True) -> None:
    """Write the manifests once every shard of every rank is there (the last rank's call does).

    An image counts as accounted for when it is in its shard or listed as failed beside it.

    Args:
        folders: of the set of each map kind.
        provenance: of the set of each map kind.
        source: the images.
        alone: no other process writes into the folders.
    """
    for kind, folder in folders.items():
        finish_set(PlannedSet(folder, "seeds", source.class_names, provenance[kind],
                              list(source.shard_rows),
                              {"data": str(Path(source.path).resolve())}), alone)


def _provenance(kind: str, config: Config, source: ShardSet, path: Path,
                request: Request) -> dict[str, Any]:
    """Everything that decides the content of the seeds."""
    tags = "none" if kind == "decoder" and not request.within_tags else request.tags
    return {
        "tool": "more localize", "version": more.__version__, "stage": "localize",
        "tags": tags, "data": source.manifest.digest,
        **maps_record(kind, config, path),
    }


def _other_precision(trained: Config, localizer: Localizer) -> dict[str, str]:
    """The precision of seeds for their record, where it is not the run's.

    A run that leaves it to the device gave seeds in fp32 before; those have no record of it.
    """
    if localizer.half == trained.in_bf16:
        return {}
    return {"precision": "bf16" if localizer.half else "fp32"}


def maps_record(kind: str, config: Config, path: Path, sha256: str = "") -> dict[str, Any]:
    """How the maps of a kind come out of a checkpoint folder or an exported file.

    Args:
        kind: of maps.
        config: the run's settings.
        path: the checkpoint folder or the file.
        sha256: of its weights, where that is known already.

    Returns:
        Values by name, as the provenance of seeds records them.
    """
    inference = config.inference
    scales = inference.segment_scales if kind == "decoder" else inference.scales
    masks = {"tags": "masks from tags"}.get(config.segment.supervision, config.segment.supervision)
    return {
        **({"trained_on": masks} if config.stage == 2 else {}),
        **_spread_record(kind, config),
        "map": kind, "scales": list(scales), "flip": True, "size": inference.size,
        "seed_scale": inference.seed_scale, "threshold": seed_threshold(kind, config),
        "checkpoint": path.name, "weights": sha256 or weights_digest(path),
    }


def _spread_record(kind: str, config: Config) -> dict[str, Any]:
    """How class maps were spread; nothing where they were not."""
    inference = config.inference
    if kind == "decoder" or not inference.spread:
        return {}
    return {"spread": inference.spread, "spread_temperature": inference.spread_temperature}


def seed_threshold(kind: str, config: Config) -> float | None:
    """The background threshold of a kind of seeds; None where the background is explicit."""
    if kind == "decoder":
        return None
    return config.cam.background if kind == "cam" else config.inference.threshold


class _locks:
    """The writer's place in every folder; ranks of one job share it."""

    def __init__(self, folders: list[Path], rank: int, world: int):
        self.folders, self.alone = folders, world == 1
        self.held: list[Any] = []

    def __enter__(self) -> None:
        for folder in self.folders:
            make_folder(folder)
            if self.alone:
                lock = folder_lock(folder)
                lock.__enter__()
                self.held.append(lock)
                remove_temporaries(folder)

    def __exit__(self, *error: Any) -> None:
        for lock in reversed(self.held):
            lock.__exit__(*error)
