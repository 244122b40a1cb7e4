"""A folder in which the lines of the pages can be typed: what they name is there, tiny.

Place-holders are names of real files and folders (`RUN`, `SET`, `MY_DATA`, …), recipes are
stand-ins of a micro network that trains for two updates, VOC and COCO are drawn pictures in their
layout.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.writer import ShardWriter
from more.data.tags import VOC_CLASSES
from tests.command.page_typing import Typist
from tests.data_tools.coco_layout import CATEGORIES, CocoFolder, box
from tests.data_tools.layout import sbd_folder, voc_folder
from tests.train.conftest import TINY

RECIPES = ("voc12_vit_b", "voc12_dinov2_s", "coco14_vit_b", "shapes_micro")
SIZE = 64  # pixels of a side
# Runs that are compared: they must not be one.
SCORED = ("RUN1", "RUN2", "RUN3", "RUN4", *(f"quickstart/{kind}{number}/run" for number in (1, 2, 3)
                                            for kind in ("full", "base")))
# Other names of the same things: where the link lies, and what it leads to from there.
LINKS = {
    **{f"checkpoints/{name}": "../RUN" for name in ("mine", "voc_sub")},
    **{f"data/{name}": "../SET" for name in ("voc_sub", "all", "voc_train")},
    **{f"data/{name}": "../VAL" for name in ("voc_sub_val", "voc_val")},
    "quickstart/data/train": "../../SET", "quickstart/data/val": "../../VAL",
    "DIR": "RUN", "SEEDS": "RUN/seeds/lam", "MASKS": "RUN/masks/lam", "A": "RUN/masks/lam",
    "B": "RUN/masks/fused", "PHOTOS": "photos", "MY_DATA": "photos", "new_pictures": "holiday",
    "tags.csv": "photos/tags.csv",
}


def draw(number: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A picture, uint8 RGB, its mask, and the numbers of its two classes from 1."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    # Dog, cat and person are in every part of a set.
    classes = [(8, 12, 15)[number % 3], number % len(VOC_CLASSES) + 1]
    for place, label in enumerate(classes):
        top, left = 34 * place + int(rng.integers(0, 4)), int(rng.integers(0, 30))
        area = np.s_[top:top + 24, left:left + 30]
        mask[area] = label
        pixels[area] = np.array([label * 12, 255 - label * 9, label * 37 % 256], np.uint8)
    return pixels, mask, sorted(set(classes))


def image_set(folder: Path, first: int, count: int) -> None:
    """A shard set of drawn pictures with VOC's classes."""
    folder.mkdir(parents=True)
    with ShardWriter(folder / shard_name(0), "images", list(VOC_CLASSES), {}) as writer:
        for number in range(first, first + count):
            pixels, mask, classes = draw(number)
            tags = np.isin(np.arange(1, len(VOC_CLASSES) + 1), classes).astype(int)
            writer.add(f"picture_{number}", tags, mask.shape, mask=encode_mask(mask),
                       image=cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    write_manifest(folder, "images", list(VOC_CLASSES), [writer.entry], {})


def pictures(folder: Path, first: int, count: int) -> None:
    """Picture files, every fourth a PNG, and their `tags.csv`."""
    folder.mkdir(parents=True)
    lines = ["id,tags"]
    for number in range(first, first + count):
        pixels, _, classes = draw(number)
        name = f"photo_{number}.{'jpg' if number % 4 else 'png'}"
        cv2.imwrite(str(folder / name), pixels[..., ::-1])
        lines.append(f'{name},"{",".join(VOC_CLASSES[label - 1] for label in classes)}"')
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")


def archives(root: Path) -> None:
    """VOC, SBD and COCO 2014 as unpacked, a few pictures each."""
    voc = voc_folder(root / "VOCdevkit" / "VOC2012", images=6)
    (voc / "ImageSets/Segmentation/train.txt").write_text("id0\nid1\nid2\nid3\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("id4\nid5\n")
    sbd_folder(root / "benchmark_RELEASE", ["id1", "id3"], ["id4"])
    for part in ("train", "val"):
        folder = CocoFolder(root, images=f"{part}2014")
        folder.json = root / "annotations" / f"instances_{part}2014.json"
        for k in range(4):
            number = folder.image(f"COCO_{part}2014_{k:012d}.jpg")
            folder.add(number, CATEGORIES[k % 3]["id"], [box(4, 4, 14, 20)])
        folder.write()


def truth_folder(root: Path) -> None:
    """Index masks of `SET` as files, for `--truth FOLDER`."""
    (root / "FOLDER").mkdir()
    for number in range(24):
        cv2.imwrite(str(root / "FOLDER" / f"picture_{number}.png"), draw(number)[1])
    (root / "classes.txt").write_text("\n".join(VOC_CLASSES) + "\n")
    (root / "test.txt").write_text("".join(f"picture_{number}\n" for number in range(24)))


def trained_run(typist: Typist) -> None:
    """`RUN` with seeds, masks, scores and stage two, and its weights as one file."""

    def type_(words: str) -> None:
        assert typist.module(["more", *words.split()]) == 0, words

    type_("train shapes_micro --train SET --val VAL --run RUN")
    type_("localize --run RUN --data SET --out RUN/seeds --map cam --map lam --map fused")
    for name in ("lam", "fused"):
        type_(f"refine RUN/seeds/{name} --data SET --out RUN/masks/{name}")
    type_("train shapes_micro --train SET --val VAL --masks RUN/masks/lam --init RUN")
    for part, data in (("train", "SET"), ("val", "VAL")):
        type_(f"localize --run RUN/two --data {data} --out RUN/two/seeds/{part} --map decoder")
        type_(f"refine RUN/two/seeds/{part} --data {data} --out RUN/two/masks/{part}")
    type_("evaluate RUN/seeds/lam --data quickstart/data/train --save RUN/scores/seeds_lam.json")
    type_("evaluate RUN/two/masks/val --data quickstart/data/val "
          "--save RUN/two/scores/masks_val.json")
    type_("export-weights --run RUN --out mine.safetensors")
    newest = sorted((typist.root / "RUN" / "checkpoints").glob("step-*"))[-1]
    shutil.copy(newest / "model.safetensors", typist.root / "vit_small_patch14_dinov2.safetensors")


def make_world(root: Path) -> Path:
    """All that the lines name, in an empty folder."""
    (root / "configs").mkdir()
    recipe = TINY.replace("num_classes=7", "num_classes=20").replace("iterations=6", "iterations=2")
    for name in RECIPES:
        (root / "configs" / f"{name}.py").write_text(recipe)
    image_set(root / "SET", 0, 24)
    image_set(root / "VAL", 24, 8)
    pictures(root / "photos", 40, 12)
    pictures(root / "holiday", 60, 3)
    image_set(root / "data" / "mine", 0, 24)
    image_set(root / "data" / "mine" / "train", 80, 10)
    archives(root)
    truth_folder(root)
    for link, target in LINKS.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, root / link)
    with pytest.MonkeyPatch.context() as patch:
        trained_run(Typist(root, patch))
    for name in SCORED:
        shutil.copytree(root / "RUN", root / name,
                        ignore=shutil.ignore_patterns("checkpoints", "seeds", "masks", "tokens"))
    return root
