"""Small COCO folders for the tests, and large ones of the same form as the official files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_tools import coco

CATEGORIES = [{"id": 10, "name": "traffic light", "supercategory": "outdoor"},
              {"id": 1, "name": "person", "supercategory": "person"},
              {"id": 90, "name": "toothbrush", "supercategory": "indoor"}]
SIZE = (24, 32)  # height and width


def box(top: int, left: int, bottom: int, right: int) -> list[float]:
    """The polygon that covers exactly these pixels, `bottom` and `right` left out."""
    return [left, top, right, top, right, bottom, left, bottom]


def runs(top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    """The same pixels as uncompressed run lengths, column by column."""
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": list(SIZE), "counts": [0, *counts] if flat[0] else counts}


class CocoFolder:
    """Collects images and annotations of an instances file; `write` makes the files.

    Args:
        root: gets `annotations/instances.json` and the image folder.
        images: name of the image folder.
        noise: whether the image files hold noise, which makes them large.
    """

    def __init__(self, root: Path, images: str = "train2017", noise: bool = True):
        self.root, self.image_dir, self.noise = root, root / images, noise
        self.json = root / "annotations" / "instances.json"
        self.content: dict[str, Any] = {"info": {"year": 2017}, "images": [], "annotations": [],
                                        "categories": [dict(c) for c in CATEGORIES]}

    def image(self, name: str, size: tuple[int, int] = SIZE, file: str | None = None) -> int:
        """Add image `name` (its file may be called `file`; "" for no file); its id."""
        number = len(self.content["images"]) + 100
        self.content["images"].append({"id": number, "file_name": name, "height": size[0],
                                       "width": size[1]})
        if file != "":
            path = self.image_dir / (file or name)
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(number)
            pixels = rng.integers(0, 255, (*size, 3) if self.noise else 3, np.uint8)
            cv2.imwrite(str(path), np.broadcast_to(pixels, (*size, 3)))
        return number

    def add(self, image: int, category: int, segmentation: Any, crowd: int = 0) -> None:
        """Add an annotation."""
        self.content["annotations"].append(
            {"id": len(self.content["annotations"]) + 1, "image_id": image, "iscrowd": crowd,
             "category_id": category, "segmentation": segmentation, "area": 1.5,
             "bbox": [0.0, 0.0, 1.0, 1.0]})

    def write(self) -> CocoFolder:
        """Write the JSON file."""
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(json.dumps(self.content))
        return self


def plain_folder(root: Path, images: int = 12, size: tuple[int, int] = SIZE) -> CocoFolder:
    """Images 000000000000.jpg …; image k shows class k mod 3 (by id) in rows 4 to 11."""
    folder = CocoFolder(root)
    for k in range(images):
        number = folder.image(f"{k:012d}.jpg", size)
        folder.add(number, (1, 10, 90)[k % 3], [box(4, 0, 12, size[1])])
    return folder.write()


def run(folder: CocoFolder, out: Path, image_dir: Path | None = None, **options: Any) -> int:
    """Convert a folder in this process; the exit code."""
    options = {"shard_size": 5, "workers": 1, **options}
    return coco.main(folder.json, image_dir or folder.image_dir, out, **options)


def large_folder(root: Path, images: int, per_image: float = 7.17, points: int = 25,
                 size: tuple[int, int] = (48, 64)) -> tuple[Path, Path, int]:
    """A folder of tiny images with annotations as long as the official ones.

    Returns:
        The JSON file, the image folder and the number of annotations.
    """
    rng = np.random.default_rng(0)
    folder, path = root / "train2017", root / "instances_train2017.json"
    folder.mkdir(parents=True)
    pictures = []
    for k in range(16):  # a file system allows some ten thousand links to a file
        pictures.append(root / f"picture{k}.jpg")
        cv2.imwrite(str(pictures[-1]), rng.integers(0, 255, (*size, 3), np.uint8))
    outlines = [json.dumps(_outline(rng, points, size)) for _ in range(500)]
    categories = [{"supercategory": f"group {k % 12}", "id": k + 1, "name": f"class {k + 1}"}
                  for k in range(80)]
    count = round(images * per_image)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for k in range(images):
            name = f"{k:012d}.jpg"
            os.link(pictures[k % len(pictures)], folder / name)
            file.write(f'{", " if k else ""}{{"license": 3, "file_name": "{name}", "coco_url": '
                       f'"http://images.cocodataset.org/train2017/{name}", "height": {size[0]}, '
                       f'"width": {size[1]}, "date_captured": "2013-11-14 11:18:45", "id": {k}}}')
        file.write('], "annotations": [')
        owners, shapes = rng.integers(0, images, count), rng.integers(0, len(outlines), count)
        for k, (owner, shape) in enumerate(zip(owners.tolist(), shapes.tolist(), strict=True)):
            file.write(f'{", " if k else ""}{{"segmentation": [{outlines[shape]}], "area": '
                       f'702.1057499999998, "iscrowd": 0, "image_id": {owner}, "bbox": [473.07, '
                       f'395.93, 38.65, 28.67], "category_id": {shape % 80 + 1}, "id": {k + 1}}}')
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path, folder, count


def _outline(rng: np.random.Generator, points: int, size: tuple[int, int]) -> list[float]:
    """A star-shaped polygon inside an image of `size`."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    lengths = rng.uniform(0.3, 1, points) * rng.uniform(3, min(size) / 2)
    centre = rng.uniform(0.2, 0.8, 2) * size[::-1]
    place = centre + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.clip(place, 0, size[::-1]).round(2).reshape(-1).tolist()
