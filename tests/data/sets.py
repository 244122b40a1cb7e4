"""Small shard sets for the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.writer import ShardWriter

NAMES = ["cat", "dog", "cow"]


def picture(seed: int, height: int = 30, width: int = 40) -> bytes:
    """A JPEG of noise, `seed` decides."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def small_set(folder: Path, shards: int = 3, rows: int = 5, provenance: dict | None = None) -> Path:
    """A set of `shards * rows` noise images with masks; row k has tag k mod 3."""
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
                           image=picture(k, *size), mask=encode_mask(mask))
        entries.append(writer.entry)
    write_manifest(folder, "images", NAMES, entries, provenance or {})
    return folder


def flip_a_byte(folder: Path, copy: Path) -> Path:
    """A copy of a set with one bit wrong in its first shard."""
    shutil.copytree(folder, copy)
    shard = copy / read_manifest(copy).shards[0].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return copy
