"""Small synthetic sets: images with true masks, seeds and masks made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from more.data.seeds import SeedItem, encode_seed
from more.data.shards.codec import encode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.writer import ShardWriter

CLASSES = ["dog", "cat", "train"]
LAM = {"tool": "more localize", "stage": "localize", "map": "lam", "tags": "true",
       "scales": [1.0, 0.5, 0.75, 1.25], "flip": True, "threshold": 0.5}
REFINED = {"tool": "more refine", "stage": "refine", "crf": {"iterations": 10},
           "engine": "pydensecrf", "seeds": LAM}


@dataclass
class Row:
    """One image of a synthetic set."""

    name: str
    truth: np.ndarray
    tags: np.ndarray
    image: np.ndarray
    seed: SeedItem


def make_rows(count: int = 20, seed: int = 0) -> list[Row]:
    """Images of different sizes with one or two boxes, noisy maps, and one image without tags."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        height, width = int(rng.integers(40, 60)), int(rng.integers(40, 60))
        truth = np.zeros((height, width), np.uint8)
        for _ in range(0 if number == 3 else 2):
            top, left = int(rng.integers(0, 25)), int(rng.integers(0, 25))
            truth[top:top + 18, left:left + 15] = rng.integers(1, len(CLASSES) + 1)
        keys = np.setdiff1d(np.unique(truth), [0])
        maps = np.stack([cv2.resize((truth == key).astype(np.float32), (10, 10))
                         for key in keys]) if len(keys) else np.zeros((0, 10, 10), np.float32)
        maps = np.clip(maps + rng.normal(0, 0.03 * number, maps.shape), 0, 1)
        truth[-1] = 255
        tags = np.isin(np.arange(1, len(CLASSES) + 1), keys).astype(np.uint8)
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        rows.append(Row(f"img_{number:02d}", truth, tags, image, SeedItem(keys, maps)))
    return rows


def write_set(folder: Path, kind: str, rows: list[Row], payload, provenance=None,
              classes=CLASSES, extra=None, shards: int = 2) -> Path:
    """A shard set whose rows carry what `payload(row)` returns, spread over some shards."""
    folder.mkdir(parents=True)
    entries = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        writer = ShardWriter(folder / f"shard-{number:05d}.h5", kind, classes, provenance)
        for row in (rows[i] for i in part):
            writer.add(row.name, row.tags, row.truth.shape, **payload(row))
        entries.append(writer.close())
    write_manifest(folder, kind, classes, entries, provenance or {}, extra)
    return folder


def image_payload(row: Row) -> dict[str, bytes]:
    """JPEG and true mask."""
    return {"image": cv2.imencode(".jpg", row.image)[1].tobytes(), "mask": encode_mask(row.truth)}


def seed_payload(row: Row) -> dict[str, bytes]:
    """The row's class maps."""
    return {"seed": encode_seed(row.seed)}


def mask_payload(row: Row) -> dict[str, bytes]:
    """The truth with its ignored row made background and, in even images, a wrong corner."""
    mask = np.where(row.truth == 255, 0, row.truth).astype(np.uint8)
    if int(row.name[-2:]) % 2 == 0:
        mask[:10, :10] = 2
    return {"mask": encode_mask(mask)}


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    return make_rows()


@pytest.fixture(scope="session")
def data(rows, tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "shapes", "images", rows, image_payload)


@pytest.fixture(scope="session")
def seeds(rows, tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("run") / "seeds" / "lam", "seeds", rows,
                     seed_payload, LAM)
