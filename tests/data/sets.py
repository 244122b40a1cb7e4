"""Small shard sets for the tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter

NAMES = ["cat", "dog", "cow"]


def picture(seed: int, height: int = 30, width: int = 40) -> bytes:
    """A JPEG of noise, `seed` decides."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def small_set(folder: Path, shards: int = 3, rows: int = 5, provenance: dict | None = None,
              first: int = 0, bare: Sequence[int] = ()) -> Path:
    """A set of `shards * rows` noise images with masks; row k has tag k mod 3.

    `first` gives other noise, `bare` names rows without a mask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(shards):
        path = folder / shard_name(number)
        with ShardWriter(path, "images", NAMES, provenance or {}) as writer:
            for row in range(rows):
                k = number * rows + row
                size = (30 + k, 40)
                mask = np.full(size, k % 3 + 1, np.uint8)
                mask[0] = 255
                writer.add(f"image_{k}", np.eye(3, dtype=int)[k % 3], size,
                           image=picture(first + k, *size),
                           mask=None if k in bare else encode_mask(mask))
        entries.append(writer.entry)
    write_manifest(folder, "images", NAMES, entries, provenance or {})
    return folder


def mask_set(folder: Path, images: Path, rows: Iterable[int] | None = None, *,
             names: Sequence[str] = NAMES, provenance: dict | None = None,
             confidence: Callable[[int], int] | None = lambda row: 100 + row,
             label: Callable[[int], int] = lambda row: row % 3 + 1,
             size: Callable[[int, int], tuple[int, int]] = lambda *size: size) -> Path:
    """Masks as `more refine` writes them, for some rows of a set, in this order.

    That of row k holds `label(k)`, 255 in its first line, with `confidence(k)` everywhere.
    """
    source = ShardSet(images)
    provenance = {"data": source.manifest.digest} if provenance is None else provenance
    folder.mkdir(parents=True)
    with ShardWriter(folder / shard_name(0), "masks", list(names), provenance) as writer:
        for row in range(len(source)) if rows is None else rows:
            shape = size(*map(int, source.sizes[row]))
            mask = np.full(shape, label(row), np.uint8)
            mask[0] = 255
            sure = None if confidence is None else np.full(shape, confidence(row), np.uint8)
            writer.add(source.ids[row], np.zeros(len(names), int), shape, mask=encode_mask(mask),
                       confidence=None if sure is None else encode_mask(sure))
    write_manifest(folder, "masks", list(names), [writer.entry], provenance)
    return folder


def label_pictures(folder: Path, labels: Sequence[np.ndarray], pictures: Sequence[np.ndarray]
                   ) -> Path:
    """A set of images, kept without loss, with their masks."""
    folder.mkdir(parents=True)
    with ShardWriter(folder / shard_name(0), "images", NAMES) as writer:
        for number, (label, pixels) in enumerate(zip(labels, pictures, strict=True)):
            tags = np.isin(np.arange(1, len(NAMES) + 1), label).astype(int)
            stored = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
            writer.add(f"image_{number}", tags, label.shape, image=stored, mask=encode_mask(label))
    write_manifest(folder, "images", NAMES, [writer.entry], {})
    return folder


def flip_a_byte(folder: Path, copy: Path) -> Path:
    """A copy of a set with one bit wrong in its first shard."""
    shutil.copytree(folder, copy)
    shard = copy / read_manifest(copy).shards[0].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return copy
