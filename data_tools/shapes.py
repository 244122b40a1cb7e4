"""`python -m data_tools.shapes`: a practice set of drawn objects and their masks, in VOC layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from PIL import Image

from data_tools.class_table import show_counts
from data_tools.shapes_draw import (
    ALONE,
    CLASSES,
    TRAIN,
    WITH_TRAIN,
    Pose,
    background,
    coverage,
    draw_track,
    shade,
)
from data_tools.tool import Workers, command, parallel
from more.data.shards.codec import mask_values
from more.data.shards.format import write_atomic
from more.data.shards.lock import folder_lock
from more.data.tag_files import read_tag_file
from more.errors import UserError
from more.palette import PALETTE
from more.progress import Tally, track

RECORD = "shapes.json"
DRAWING = 2
"""Version of the pictures. In version 1 the star's texture was grey noise, too fine for a patch."""
SMALLEST = 48
_CHUNK = 40


@dataclass(frozen=True)
class Scene:
    """A drawn picture of side S.

    Attributes:
        image: RGB uint8 `[S, S, 3]`.
        mask: uint8 `[S, S]`, class of each pixel.
        tags: names of the classes that are visible.
    """

    image: np.ndarray
    mask: np.ndarray
    tags: list[str]


@dataclass(frozen=True)
class PictureJob:
    """Consecutive pictures for one worker to draw.

    Attributes:
        out: folder of the set.
        seed: of the set.
        size: side of a picture in pixels.
        names: of the pictures.
        first: number of the first one.
    """

    out: Path
    seed: int
    size: int
    names: list[str]
    first: int


def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Draw picture number `index` of a set, a pure function of the arguments.

    One to three objects of 5 to 35 % of the picture, partly hidden by one another. Nine of ten
    trains stand on a track, which is background; a track without train is rare.

    Args:
        seed: of the set.
        index: number of the picture.
        size: its side in pixels.

    Returns:
        The picture.
    """
    rng = np.random.default_rng([seed, index])
    image, mask = background(size, rng), np.zeros((size, size), np.uint8)
    objects = _compose(size, rng)
    trains = [pose for kind, pose, _ in objects if kind == TRAIN]
    for pose in trains:
        if rng.random() < WITH_TRAIN:
            draw_track(image, pose, rng)
    if not trains and rng.random() < ALONE:
        draw_track(image, _pose(TRAIN, 0.15, size, rng), rng)
    for kind, pose, cover in objects:
        shade(image, CLASSES[kind], pose, cover, rng)
        mask[cover > 0.5] = kind + 1
    image *= rng.uniform(0.8, 1.15)
    image += rng.normal(0, rng.uniform(2, 7), image.shape).astype(np.float32)
    tags = [CLASSES[value - 1] for value in mask_values(mask) if value]
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask, tags)


def _compose(size: int, rng: np.random.Generator) -> list[tuple[int, Pose, np.ndarray]]:
    """Classes, poses and coverages, back to front; at least 55 % of each object stays visible."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    kinds = rng.permutation(len(CLASSES))[:count]
    if count > 1 and rng.random() < 0.15:  # now and then twice the same class
        kinds[1] = kinds[0]
    placed: list[tuple[int, Pose, np.ndarray]] = []
    for kind in kinds:
        for _ in range(25):
            share = rng.uniform(0.05, (0.35, 0.22, 0.16)[count - 1])
            pose = _pose(int(kind), share, size, rng)
            cover = coverage(CLASSES[kind], pose, size)
            if _fits(cover, share * size * size, [other for _, _, other in placed]):
                placed.append((int(kind), pose, cover))
                break
    return placed or _compose(size, rng)


def _pose(kind: int, share: float, size: int, rng: np.random.Generator) -> Pose:
    """A random pose of an object that covers about `share` of the picture."""
    if kind == TRAIN:
        share = min(share, 0.24)  # longer ones would not fit
    angle = rng.normal(0, 0.14) if kind == TRAIN else rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.15, 0.85, 2) * size
    return Pose(float(x), float(y), float(np.sqrt(share / 2.5) * size), float(angle))


def _fits(cover: np.ndarray, wanted: float, others: list[np.ndarray]) -> bool:
    """Mostly inside the picture, and not in the way of what is there already."""
    shown = [other * (1 - cover) for other in others]
    front = sum(others, np.zeros_like(cover))
    return bool(cover.sum() > 0.7 * min(wanted, 0.24 * cover.size)
                and np.minimum(front, cover).sum() < 0.4 * cover.sum()
                and all(left.sum() > 0.7 * other.sum()
                        for left, other in zip(shown, others, strict=True)))


def write_part(part: PictureJob) -> list[tuple[str, str]]:
    """Draw and write pictures.

    Args:
        part: which ones.

    Returns:
        (name, tags) for the lines of the csv.
    """
    cv2.setNumThreads(0)
    lines = []
    for offset, name in enumerate(part.names):
        scene = draw_scene(part.seed, part.first + offset, part.size)
        bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 93])[1].tobytes()
        (part.out / "JPEGImages" / f"{name}.jpg").write_bytes(data)
        palette_png = Image.fromarray(scene.mask, "L").convert("P")
        palette_png.putpalette(PALETTE.tobytes())
        palette_png.save(part.out / "SegmentationClass" / f"{name}.png")
        lines.append((name, " ".join(scene.tags)))
    return lines


def make_shapes(out: Path, images: int, val: int, size: int, seed: int, workers: int) -> Tally:
    """Write the set; see `main`. A finished set with the same parameters is left as it is."""
    if images < 1 or val < 0 or size < SMALLEST:
        raise UserError(f"{images} images, {val} of val, {size} px",
                        fix=f"ask for at least 1 image of at least {SMALLEST} px")
    wanted = {"images": images, "val": val, "size": size, "seed": seed, "drawing": DRAWING}
    tally = Tally("images")
    with folder_lock(out):
        if _finished(out / RECORD, wanted):
            tally.skip(images + val)
            return tally
        write_atomic(out / RECORD, json.dumps({**wanted, "complete": False}).encode())
        _write(out, wanted, workers, tally)
        if not tally.failures:
            write_atomic(out / RECORD, json.dumps({**wanted, "complete": True}).encode())
    return tally


def _finished(record: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds the whole wanted set; refuses to mix two sets in one folder."""
    if not record.is_file():
        return False
    found = json.loads(record.read_text())
    complete = found.pop("complete", False)
    old = found.get("drawing")
    if old != DRAWING:
        raise UserError(f"{record.parent}: drawn as number {old} of the shapes set; this version "
                        f"draws number {DRAWING} (the star's texture has changed)",
                        fix="delete this folder, and the shard sets and runs made from it, or "
                            "write to a new one")
    if found != wanted:
        raise UserError(f"{record}: another set is in this folder ({found})",
                        fix="write to a new folder, or delete this one first")
    return complete


def _write(out: Path, wanted: dict[str, Any], workers: int, tally: Tally) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    names = [f"shapes_{number:06d}" for number in range(wanted["images"] + wanted["val"])]
    parts = [PictureJob(out, wanted["seed"], wanted["size"], names[start:start + _CHUNK], start)
             for start in range(0, len(names), _CHUNK)]
    tags: dict[str, str] = {}
    with track(len(names), "drawing shapes") as bar:
        for part, result in parallel(write_part, parts, workers):
            bar.advance(len(part.names))
            if isinstance(result, BaseException):
                tally.fail(f"{part.names[0]} … {part.names[-1]}", str(result))
                continue
            tally.ok(len(part.names))
            tags.update(result)
    lists = out / "ImageSets" / "Segmentation"
    _lines(lists / "train.txt", names[:wanted["images"]])
    _lines(lists / "val.txt", names[wanted["images"]:])
    _lines(out / "classes.txt", ["background", *CLASSES])
    _lines(out / "tags.csv", ["id,tags", *(f"{name},{tags[name]}" for name in sorted(tags))])


def images_per_class(out: Path) -> dict[str, dict[str, int]]:
    """Images of each class in the lists train and val of a finished set."""
    tags = {name: line.cell.split() for name, line in read_tag_file(out / "tags.csv")[0].items()}
    found = {}
    for split in ("train", "val"):
        ids = (out / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        if ids:
            found[split] = {name: sum(name in tags[image_id] for image_id in ids)
                            for name in CLASSES}
    return found


def _lines(path: Path, lines: list[str]) -> None:
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def main(
    out: Annotated[Path, typer.Argument(help="folder to write, VOC layout")],
    images: Annotated[int, typer.Option(help="training images")] = 1000,
    val: Annotated[int, typer.Option(help="further images for val; -1 = a fifth")] = -1,
    size: Annotated[int, typer.Option(help="side of a picture in pixels")] = 112,
    seed: Annotated[int, typer.Option(help="another seed, other pictures")] = 0,
    workers: Workers = 0,
) -> int:
    """Draw the shapes set: 7 classes told apart by form and texture, exact masks, image tags.

    Example: python -m data_tools.shapes data/shapes --images 1000 --seed 0
    """
    tally = make_shapes(out, images, images // 5 if val < 0 else val, size, seed, workers)
    if not tally.failures:
        show_counts(images_per_class(out))
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
