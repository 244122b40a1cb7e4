"""Small image and seed sets, and shard functions that misbehave in worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np

from more.data.seeds import SeedItem, encode_seed
from more.data.shards import writer as writer_module
from more.data.shards.manifest import write_manifest
from more.data.shards.writer import ShardWriter
from more.filtering.parameters import CRFParams
from more.jobs.bookkeeping import read_in_hand
from more.refinement import mask_shard as module
from more.refinement.image import Refinement

CLASSES = ["ant", "bee", "cat", "dog"]
POISON = "image-05"
FAST = Refinement(CRFParams(iterations=3))
# Where no process has to die, a thread runs the shards: no start-up time.
INLINE = {"make_executor": partial(ThreadPoolExecutor, 1), "workers": 1}


def textured(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth colourful image with noise, uint8 RGB."""
    coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height)) + rng.normal(0, 4, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def smooth_maps(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Maps in 0..1, [count, height, width] float16."""
    coarse = rng.random((4, 5, max(count, 1))).astype(np.float32)
    maps = cv2.resize(coarse, (width, height)).reshape(height, width, -1)[..., :count]
    return maps.transpose(2, 0, 1).astype(np.float16)


def make_sets(root: Path, count: int = 12, size: tuple[int, int] = (60, 72), seed: int = 0,
              rows: int = 5, damage: str | None = None) -> tuple[Path, Path]:
    """Image and seed sets of `count` images; image-00 has no tag, image-01 all of them.

    `damage` names an image whose stored bytes are no image.
    """
    rng = np.random.default_rng(seed)
    seeds, data = root / "seeds", root / "data"
    seeds.mkdir(parents=True)
    data.mkdir()
    entries = {seeds: [], data: []}
    for number, start in enumerate(range(0, count, rows)):
        with (ShardWriter(seeds / f"shard-{number:05d}.h5", "seeds", CLASSES) as into,
              ShardWriter(data / f"shard-{number:05d}.h5", "images", CLASSES) as pictures):
            for i in range(start, min(start + rows, count)):
                tags = rng.integers(0, 2, len(CLASSES)) if i > 1 else np.full(len(CLASSES), i)
                name, shape = f"image-{i:02d}", (size[0] + i % 3, size[1] - i % 2)
                image = textured(rng, *shape)
                stored = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
                keys = np.flatnonzero(tags) + 1
                item = SeedItem(keys, smooth_maps(rng, len(keys), 8, 9))
                into.add(name, tags, shape, seed=encode_seed(item))
                pictures.add(name, tags, shape, image=b"junk" if name == damage else stored)
        entries[seeds].append(into.entry)
        entries[data].append(pictures.entry)
    write_manifest(seeds, "seeds", CLASSES, entries[seeds], {"map": "lam", "tags": "true"})
    write_manifest(data, "images", CLASSES, entries[data], {})
    return seeds, data


def shard_bytes(folder: Path) -> dict[str, str]:
    """Name and digest of all files of a finished set: a failed comparison names the files."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def kill_the_worker_on(shard: Path) -> list[tuple[int, str]]:
    """SIGKILL to the process that works on a shard, once, as soon as it does.

    The list it returns then holds the process and the image.
    """
    killed: list[tuple[int, str]] = []

    def watch() -> None:
        while not killed:
            found = read_in_hand(shard)
            if found and found[0] != os.getpid():
                os.kill(found[0], signal.SIGKILL)
                killed.append(found)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    return killed


def segfault() -> None:
    """End this process by a bad memory access, as a native library does (exit code 139)."""
    ctypes.string_at(0)


def poisoned_shard(spec: module.ShardSpec) -> module.ShardReport:
    """`refine_shard` with a native library that crashes on one image."""
    add = module._add_image

    def crash(writer, spec, seeds, data, row):
        if seeds.ids[row] == POISON:
            segfault()
        add(writer, spec, seeds, data, row)

    return _wounded(spec, module, "_add_image", crash)


def logged_shard(spec: module.ShardSpec) -> module.ShardReport:
    """`refine_shard`, slowed down and with a line per call in `calls` beside the output."""
    with open(Path(spec.out).parent / "calls", "a") as file:
        file.write(f"{spec.number}\n")
    add = module._add_image

    def slow(*arguments):
        time.sleep(0.1)
        add(*arguments)

    return _wounded(spec, module, "_add_image", slow)


def full_disk_shard(spec: module.ShardSpec) -> module.ShardReport:
    """`refine_shard` with a disk that is full for shard 1."""
    write = writer_module.write_file

    def full(path, data):
        if path.name.startswith("shard-00001"):
            path.symlink_to("/dev/full")
        write(path, data)

    return _wounded(spec, writer_module, "write_file", full)


def crashing_writer_shard(spec: module.ShardSpec) -> module.ShardReport:
    """`refine_shard` with an HDF5 that crashes when half of shard 1 is written."""
    write = writer_module.write_file

    def crash(path, data):
        if path.name.startswith("shard-00001"):
            write(path, data[:len(data) // 2])
            segfault()
        write(path, data)

    return _wounded(spec, writer_module, "write_file", crash)


def _wounded(spec: module.ShardSpec, place: object, name: str, wound) -> module.ShardReport:
    """`refine_shard` with a function of a module replaced."""
    sound = getattr(place, name)
    setattr(place, name, wound)
    try:
        return module.refine_shard(spec)
    finally:
        setattr(place, name, sound)
