"""From a checkpoint to seed shards: CAM, LAM, their fusion, decoder probabilities.

Each rank owns whole shards of the data set; every map kind becomes a shard set of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import more
from more.config.schema import Config
from more.data.shards.format import make_folder, remove_temporaries, sha256_file, shard_name
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import finished_shards, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.data.transforms import inference_image
from more.engine.distributed import local_device
from more.engine.weights import load_run, weights_file
from more.errors import UserError
from more.localization.maps import minmax, multi_scale
from more.progress import Tally, track
from more.pseudo.seeds import SeedItem, encode_seed

KINDS = ("cam", "lam", "fused", "decoder")
SMALLEST_PROBABILITY = 0.01


@dataclass(frozen=True)
class Request:
    """What to compute: map kinds, where the tags come from, how many images a forward."""

    maps: tuple[str, ...] = ("lam",)
    tags: str = "true"
    batch: int = 4


def localize(run: Path, data: Path, out: Path, request: Request, which: str = "latest",
             rank: int = 0, world: int = 1, device: torch.device | None = None) -> Tally:
    """Write seed shards of a data set; finished shards are skipped.

    Args:
        run: run folder with a checkpoint, or a file of `more export-weights`.
        data: image shards.
        out: seed shards; with several maps, a sub-folder for each.
        request: what to compute.
        which: "latest" or a checkpoint folder.
        rank, world: this process takes shards rank, rank + world, …
        device: where to compute; None: this process's CUDA device if there is one, else CPU.

    Raises:
        UserError: run and data do not fit, or `out` holds seeds made with other parameters.
    """
    source = ShardSet(data, kind="images", check="full", share=(rank, world))
    config, network, path = load_run(run, which)
    if source.num_classes != config.model.num_classes:
        raise UserError(f"{data} has {source.num_classes} classes, the run "
                        f"{config.model.num_classes}", "use the run's own data set")
    device = device or local_device()
    localizer = Localizer(config, network.to(device), request, device)
    folders = {kind: out / kind if len(request.maps) > 1 else out for kind in request.maps}
    provenance = {kind: _provenance(kind, config, source, path, request) for kind in folders}
    tally = Tally("images")
    with _locks(list(folders.values()), rank, world):
        done = {kind: finished_shards(folders[kind], provenance[kind]) for kind in folders}
        with track(len(source), "localize", disable=rank != 0) as bar:
            for shard in range(rank, len(source.shard_rows), world):
                rows = source.rows_of(shard)
                missing = [kind for kind in folders if shard_name(shard) not in done[kind]]
                if missing:
                    _write_shard(localizer, source, shard, folders, provenance, missing,
                                 bar.advance)
                    tally.ok(len(rows))
                else:
                    tally.skip(len(rows))
                    bar.advance(len(rows))
    finish(folders, provenance, source)
    return tally


def finish(folders: dict[str, Path], provenance: dict[str, dict[str, Any]],
           source: ShardSet) -> None:
    """Write the manifests once every shard of every rank is there (the last rank's call does)."""
    for kind, folder in folders.items():
        entries = finished_shards(folder, provenance[kind])
        if len(entries) == len(source.shard_rows):
            write_manifest(folder, "seeds", source.class_names, entries.values(),
                           provenance[kind], {"data": str(Path(source.path).resolve())})


class Localizer:
    """Maps of a batch of images at seed resolution.

    Args:
        config: the run's settings (`inference`).
        network: in eval mode, on `device`.
        request: map kinds and tags.
        device: where the network is.
    """

    def __init__(self, config: Config, network: torch.nn.Module, request: Request,
                 device: torch.device):
        self.config, self.network, self.request, self.device = config, network, request, device
        grid = config.inference.size // network.encoder.patch_size
        self.side = max(1, round(grid * config.inference.seed_scale))

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """RGB uint8 `[H,W,3]` → normalised `[3,S,S]` at the inference size."""
        data = self.config.data
        return torch.from_numpy(
            inference_image(image, self.config.inference.size, data.mean, data.std))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, tags: torch.Tensor) -> list[dict[str, SeedItem]]:
        """Seeds of normalised images `[B,3,S,S]` with tags `[B,C]`, one dict per image."""
        images = images.to(self.device)
        maps: dict[str, torch.Tensor] = {}
        with self._autocast():
            if self.request.tags == "predicted":
                tags = self._predict_tags(images)
            if set(self.request.maps) & {"cam", "lam", "fused"}:
                maps.update(self._localization(images))
            if "decoder" in self.request.maps:
                maps["decoder"] = self._decoder(images)
        chosen = (tags > 0).cpu().numpy()
        arrays = {kind: maps[kind].float().cpu().numpy() for kind in self.request.maps}
        return [{kind: seed_item(array[row], None if kind == "decoder" else chosen[row])
                 for kind, array in arrays.items()} for row in range(len(images))]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16,
                              enabled=self.config.precision == "bf16")

    def _localization(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        def forward(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.network(views, mode="maps")
            return found["cam"].float(), found["lam"].float()

        cam, lam = multi_scale(forward, images, self.config.inference.scales, relu=(True, False))
        maps = {"cam": cam, "lam": lam, "fused": minmax((cam + lam) / 2)}
        return {kind: self._shrink(value) for kind, value in maps.items()}

    def _decoder(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities `[B,C+1,s,s]`: logits of image and mirror added, maximum over scales."""
        best = None
        for scale in self.config.inference.segment_scales:
            side = int(images.shape[-1] * scale)
            view = F.interpolate(images, (side, side), mode="bilinear")
            logits = self.network(torch.cat([view, view.flip(-1)]), mode="segment").float()
            plain, mirrored = self._shrink(logits).chunk(2)
            total = plain + mirrored.flip(-1)
            best = total if best is None else torch.maximum(best, total)
        return best.softmax(1)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Classifier's probabilities `[B,C]` of normalised images `[B,3,S,S]`."""
        images = images.to(self.device)
        with self._autocast():
            return self.network(images, mode="maps")["logits"].float().sigmoid()

    def _predict_tags(self, images: torch.Tensor) -> torch.Tensor:
        """Classes above `inference.tag_threshold`; the best one where none is above."""
        logits = self.network(images, mode="maps")["logits"].float()
        found = logits.sigmoid() > self.config.inference.tag_threshold
        return found | (logits == logits.amax(1, keepdim=True)) & ~found.any(1, keepdim=True)

    def _shrink(self, maps: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps, (self.side, self.side), mode="bilinear",
                             antialias=maps.shape[-1] > self.side)


def seed_item(maps: np.ndarray, tags: np.ndarray | None) -> SeedItem:
    """The stored form of one image's maps.

    Args:
        maps: `[C,s,s]` for class maps, `[C+1,s,s]` with background first for probabilities.
        tags: `[C]`: the classes to keep; None keeps background and every class whose probability
            reaches 0.01 anywhere.
    """
    if tags is None:
        keep = maps.max(axis=(1, 2)) >= SMALLEST_PROBABILITY
        keep[0] = True
        keys = np.flatnonzero(keep)
        return SeedItem(keys, maps[keys].astype(np.float16))
    classes = np.flatnonzero(tags)
    return SeedItem(classes + 1, maps[classes].astype(np.float16))


def _write_shard(localizer: Localizer, source: ShardSet, shard: int, folders: dict[str, Path],
                 provenance: dict[str, dict[str, Any]], kinds: list[str],
                 advance: Callable[[int], None]) -> None:
    writers = {kind: ShardWriter(folders[kind] / shard_name(shard), "seeds", source.class_names,
                                 provenance[kind]) for kind in kinds}
    size = localizer.request.batch or localizer.config.inference.batch
    for rows in _chunks(source.rows_of(shard), size):
        images = torch.stack([localizer.prepare(source.image(i)) for i in rows])
        tags = torch.from_numpy(source.tags[rows[0]:rows[-1] + 1])
        for i, items in zip(rows, localizer(images, tags), strict=True):
            for kind, writer in writers.items():
                writer.add(source.ids[i], source.tags[i], tuple(source.sizes[i]),
                           seed=encode_seed(items[kind]))
        advance(len(rows))
    for writer in writers.values():
        writer.close()


def _chunks(rows: range, size: int) -> Iterator[range]:
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def _provenance(kind: str, config: Config, source: ShardSet, path: Path,
                request: Request) -> dict[str, Any]:
    """Everything that decides the content of the seeds."""
    return {
        "tool": "more localize", "version": more.__version__, "stage": "localize",
        "tags": "none" if kind == "decoder" else request.tags, "data": source.manifest.digest,
        **maps_record(kind, config, path),
    }


def maps_record(kind: str, config: Config, path: Path) -> dict[str, Any]:
    """How the maps of a kind come out of a checkpoint folder or an exported file."""
    inference = config.inference
    scales = inference.segment_scales if kind == "decoder" else inference.scales
    return {
        "map": kind, "scales": list(scales), "flip": True, "size": inference.size,
        "seed_scale": inference.seed_scale, "threshold": seed_threshold(kind, config),
        "checkpoint": path.name, "weights": sha256_file(weights_file(path)),
    }


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
