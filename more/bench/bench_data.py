"""What loading a training image costs: reading, decoding, augmenting, the whole loader."""

from __future__ import annotations

import multiprocessing
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from more.bench.measure import Row, alternate, rows, timed
from more.data.batch_order import GlobalBatchSampler
from more.data.colours import network_input
from more.data.loader import Reading, make_train_loader
from more.data.shards.codec import decode_image
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.data.transforms import TrainTransform, sample_generator
from more.tensors import MEAN, STD

FILES, SHARDS = "read plain files", "read shards"
FILES_SUM, SHARDS_SUM = "plain files and crc32", "shards and crc32 (as used)"
BATCH = 8


def write_pictures(folder: Path, count: int, height: int = 375, width: int = 500,
                   per_shard: int = 64, classes: int = 1) -> Path:
    """A shard set of drawn JPEG pictures about as large and as hard as photographs.

    Picture k has tag k mod `classes`.
    """
    names = [f"class_{k}" for k in range(classes)]
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, start in enumerate(range(0, count, per_shard)):
        with ShardWriter(folder / shard_name(number), "images", names) as writer:
            for k in range(start, min(start + per_shard, count)):
                tags = [int(k % classes == label) for label in range(classes)]
                writer.add(f"picture_{k:05d}", tags, (height, width),
                           image=_picture(k, height, width))
        entries.append(writer.entry)
    write_manifest(folder, "images", names, entries, {"tool": "more bench data"})
    return folder


def _picture(seed: int, height: int, width: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    for octave, weight in ((0, 7), (2, 30), (4, 18), (6, 13)):
        size = (max(height >> octave, 1), max(width >> octave, 1), 3)
        grain = rng.normal(0, weight, size).astype(np.float32)
        pixels += cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def bench_data(path: Path, scratch: Path, *, images: int = 256, crop: int = 448, workers: int = 2,
               rounds: int = 5, pipeline: str = "device") -> tuple[list[Row], dict[str, Any]]:
    """Measure one set.

    Args:
        path: shard set of images.
        scratch: empty folder for the same images as plain files.
        images: how many to take.
        crop: side of the training crop in pixels.
        workers: loader processes, and processes of the pure decode and augment beside it.
        rounds: rounds that count.
        pipeline: "device" or "pil".

    Returns:
        The table's lines and facts about the run.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    shards = ShardSet(path, kind="images", check="full")
    taken = np.random.default_rng(0).permutation(len(shards))[:images].tolist()
    blobs = {i: shards.blob("image", i) for i in taken}
    files = {i: scratch / f"{i}.jpg" for i in taken}
    for i in taken:
        files[i].write_bytes(blobs[i])
    transform = TrainTransform(crop, pipeline=pipeline)
    pure, loader = f"decode + augment, {workers} processes", f"whole loader, {workers} processes"
    seconds = alternate({
        FILES: lambda: timed(lambda i: files[i].read_bytes(), taken),
        SHARDS: lambda: timed(lambda i: shards.blob("image", i, check=False), taken),
        FILES_SUM: lambda: timed(lambda i: zlib.crc32(files[i].read_bytes()), taken),
        SHARDS_SUM: lambda: timed(lambda i: shards.blob("image", i), taken),
        **_candidates_of_work(shards, blobs, transform),
        pure: lambda: _pure([blobs[i] for i in taken], transform, workers),
        loader: lambda: _loader(shards, transform, workers, images),
    }, rounds)
    about = {"images": len(taken), "KB per image": round(sum(map(len, blobs.values()))
                                                         / len(blobs) / 1000),
             "crop": crop, "pipeline": pipeline, "rounds": rounds,
             "page cache": "warm"}
    return rows(seconds, {SHARDS: FILES, SHARDS_SUM: FILES_SUM, loader: pure}), about


def _candidates_of_work(shards: ShardSet, blobs: dict[int, bytes], transform: TrainTransform
                        ) -> dict[str, Callable[[], float]]:
    """What is done with an image once it is read, each step alone in this process."""
    taken = list(blobs)
    pixels = {i: decode_image(blobs[i], "") for i in taken[:64]}
    batch = next(iter(make_train_loader(shards, transform, GlobalBatchSampler(
        len(shards), min(BATCH, len(shards)), 0))))
    cpu = torch.device("cpu")
    return {
        "decode": lambda: timed(lambda i: decode_image(blobs[i], ""), taken),
        "augment (8 bit)": lambda: timed(
            lambda i: transform(pixels[i], sample_generator(0, 0, i)), list(pixels)),
        "colours and normalise, per batch": lambda: timed(
            lambda _: network_input(batch, cpu, MEAN, STD), list(range(4))) / len(batch["tags"])}


def _work(blobs: list[bytes], transform: TrainTransform, repeat: int, barrier: Any,
          spent: Any) -> None:
    cv2.setNumThreads(0)
    barrier.wait()
    started = time.perf_counter()
    for k in range(repeat):
        for i, blob in enumerate(blobs):
            transform(decode_image(blob, ""), sample_generator(0, k, i))
    spent.put(time.perf_counter() - started)


def _pure(blobs: list[bytes], transform: TrainTransform, workers: int) -> float:
    """Seconds per image of processes that only decode and augment what lies in memory."""
    context = multiprocessing.get_context("fork")
    barrier, spent = context.Barrier(workers), context.Queue()
    children = [context.Process(target=_work, args=(blobs, transform, 2, barrier, spent))
                for _ in range(workers)]
    for child in children:
        child.start()
    seconds = [spent.get() for _ in children]
    for child in children:
        child.join()
    return max(seconds) / (2 * len(blobs) * workers)


def _loader(shards: ShardSet, transform: TrainTransform, workers: int, images: int) -> float:
    """Seconds per image that the training loader hands over, between its start and its end."""
    plan = GlobalBatchSampler(len(shards), min(BATCH, len(shards)), 0, shards.shard_rows)
    batches = iter(make_train_loader(shards, transform, plan,
                                     reading=Reading(workers, copy=False)))
    for _ in range(8 * workers):
        next(batches)
    count, started = 0, time.perf_counter()
    while count < 4 * images:
        count += len(next(batches)["tags"])
    seconds = time.perf_counter() - started
    batches.close()
    return seconds / count
