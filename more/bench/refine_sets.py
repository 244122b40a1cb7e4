"""Pictures and seeds for `more bench refine`: some rows of real sets, or drawn ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from more.data.seeds import SeedItem, decode_seed, encode_seed
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError

CLASSES = [f"class_{k}" for k in range(20)]
SIDE = 28  # of a drawn seed: what a ViT with 16×16 patches gives at 448 px

# Id, tags, size, seed, image, and the true mask or nothing.
Row = tuple[str, np.ndarray, tuple[int, int], bytes, bytes, bytes]


def take_sets(seeds: Path, data: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """Copy up to `count` random rows that have a class into two small sets.

    Args:
        seeds: shard set of seeds.
        data: shard set of their images.
        folder: empty; becomes the parent of the new sets.
        count: rows to take; all where the sets have fewer.

    Returns:
        Folders of the seeds and of the images.

    Raises:
        UserError: not such sets, an image is missing, or no seed has a class.
    """
    source, images = ShardSet(seeds, kind="seeds"), ShardSet(data, kind="images")
    if source.class_names != images.class_names:
        raise UserError(f"{seeds} and {data} differ in their classes",
                        fix="give the image set that the seeds were made from")
    rows: list[Row] = []
    for row in np.random.default_rng(0).permutation(len(source)).tolist():
        seed = bytes(source.blob("seed", row))
        if decode_seed(seed).keys.max(initial=0) == 0:  # needs no CRF
            continue
        where = images.index_of(source.ids[row])
        rows.append((source.ids[row], source.tags[row], tuple(source.sizes[row].tolist()), seed,
                     bytes(images.blob("image", where)), bytes(images.blob("mask", where))))
        if len(rows) == count:
            break
    if not rows:
        raise UserError(f"{seeds}: no seed has a class", fix="give seeds of images with tags")
    return _write(folder, rows, source.class_names, source.manifest.provenance)


def draw_sets(folder: Path, count: int, height: int = 375, width: int = 500) -> tuple[Path, Path]:
    """Drawn pictures with one or two of 20 classes in turn, and seeds for them.

    Returns:
        Folders of the seeds and of the images.
    """
    rows: list[Row] = []
    for number in range(count):
        rng = np.random.default_rng([1, number])
        classes = np.sort(rng.permutation(len(CLASSES))[:1 + number % 2])
        tags = np.isin(np.arange(len(CLASSES)), classes).astype(np.uint8)
        seed = encode_seed(SeedItem(classes + 1, draw_maps(rng, len(classes))))
        rows.append((f"picture_{number:05d}", tags, (height, width), seed,
                     draw_picture(rng, height, width), b""))
    return _write(folder, rows, CLASSES, {"tool": "more bench refine"})


def draw_picture(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG file that is as hard for the bilateral lattice as a photograph.

    Soft colours with patches of grain, both of random strength: 0.1 to 2.3 lattice points a pixel,
    1.1 on average, like photographs of VOC (0.1 to 2.5, 1.1 on average). The time of a CRF
    depends on that number.
    """
    shape, coarse = (height, width), (max(height >> 6, 2), max(width >> 6, 2))

    def grown(grain: np.ndarray) -> np.ndarray:
        size = (width, height)
        return cv2.resize(grain.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)

    pixels = 128 + grown(rng.normal(0, rng.uniform(15, 55), (*coarse, 3)))
    strength = cv2.resize(rng.random(coarse).astype(np.float32) ** 2, shape[::-1])
    strength *= 11 * rng.random()
    for octave in range(3):
        grain = rng.normal(0, octave + 1, [max(side >> octave, 2) for side in shape])
        pixels += (grown(grain) * strength)[..., None]
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def draw_maps(rng: np.random.Generator, count: int, side: int = SIDE) -> np.ndarray:
    """Soft blobs in 0..1, one a class, as class maps are: `[count, side, side]` float16."""
    y, x = np.mgrid[:side, :side] / side
    maps = []
    for _ in range(count):
        (top, left), (tall, wide) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.35, 2)
        blob = np.exp(-((y - top) / tall) ** 2 - ((x - left) / wide) ** 2)
        maps.append(blob * rng.uniform(0.8, 1, (side, side)))
    return np.array(maps).reshape(count, side, side).astype(np.float16)


def _write(folder: Path, rows: list[Row], class_names: list[str],
           provenance: dict) -> tuple[Path, Path]:
    paths = folder / "seeds", folder / "images"
    for path, kind in zip(paths, ("seeds", "images"), strict=True):
        path.mkdir(parents=True)
        with ShardWriter(path / shard_name(0), kind, class_names, provenance) as writer:
            for image_id, tags, size, seed, image, mask in rows:
                content = {"seed": seed} if kind == "seeds" else {"image": image, "mask": mask}
                writer.add(image_id, tags, size, **content)
        write_manifest(path, kind, class_names, [writer.entry], provenance)
    return paths
