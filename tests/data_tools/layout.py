"""Small folders of images for the tests: VOC layout, the SBD release, own pictures."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from data_tools.voc import main
from more.palette import PALETTE

CLASSES = ["background", "cat", "dog", "cow"]


def save_mask(path: Path, mask: np.ndarray) -> None:
    """An index mask with VOC's palette."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(PALETTE.tobytes())
    image.save(path)


def voc_folder(root: Path, images: int = 12, size: tuple[int, int] = (24, 32)) -> Path:
    """Noise images id0…; mask of image k holds class k mod 3 + 1, background and 255."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    names = [f"id{k}" for k in range(images)]
    lines = ["id,tags"]
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 255, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), pixels)
        mask = np.zeros(size, np.uint8)
        mask[4:12], mask[12] = k % 3 + 1, 255
        save_mask(root / "SegmentationClass" / f"{name}.png", mask)
        tag = CLASSES[k % 3 + 1]
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>{tag}</name></object>"
            f"<object><name>{tag}</name></object></annotation>")
        lines.append(f"{name},{tag}")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "tags.csv").write_text("\n".join(lines) + "\n")
    return root


def convert_voc(root: Path, out: Path, **options: object) -> int:
    """`data_tools.voc` on the split train in this process, in shards of 5 images."""
    return main(root, out, **{
        "split": "train", "tags": None, "tags_from": "auto", "classes": None, "masks": "auto",
        "sbd": None, "shard_size": 5, "workers": 1, "skip_bad": False, **options})


def write_list(root: Path, text: str, split: str = "train") -> None:
    """The list file of a split in VOC layout."""
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(text)


def save_sbd_mask(path: Path, mask: np.ndarray) -> None:
    """A `.mat` file as SBD has them: the struct GTcls with the field Segmentation and others."""
    savemat(path, {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros((2, 1), object),
                             "CategoriesPresent": np.unique(mask)}}, do_compression=True)


def sbd_folder(root: Path, train: Sequence[str], val: Sequence[str],
               size: tuple[int, int] = (24, 32)) -> Path:
    """`ROOT/dataset` as in the SBD release; each mask is class 3 in the upper half."""
    for folder in ("cls", "img"):
        (root / "dataset" / folder).mkdir(parents=True)
    mask = np.zeros(size, np.uint8)
    mask[:12] = 3
    for name in (*train, *val):
        save_sbd_mask(root / "dataset/cls" / f"{name}.mat", mask)
        save_picture(root / "dataset/img" / f"{name}.jpg", size)
    for split, names in (("train", train), ("val", val)):
        (root / "dataset" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def save_picture(path: Path, size: tuple[int, int] = (24, 32)) -> None:
    """Noise that depends on the file's name, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.stem.encode())).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def pictures(root: Path, names: Iterable[str]) -> Path:
    """A folder with these images; names may hold sub-folders."""
    for name in names:
        save_picture(root / name)
    return root


def tool(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run `python -m data_tools.NAME` and capture what it says."""
    command = [sys.executable, "-m", f"data_tools.{name}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "COLUMNS": "200"}, **options)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by name; hidden ones (times of sources) are no part."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
