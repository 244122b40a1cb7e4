"""Small folders in VOC layout for the tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_tools.shapes import voc_palette

CLASSES = ["background", "cat", "dog", "cow"]


def save_mask(path: Path, mask: np.ndarray) -> None:
    """An index mask with VOC's palette."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(voc_palette())
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


def tool(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run `python -m data_tools.NAME` and capture what it says."""
    command = [sys.executable, "-m", f"data_tools.{name}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "COLUMNS": "200"}, **options)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())}
