"""Image files of a COCO folder, in the layouts and under the names of 2014 and 2017."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from data_tools.coco_json import CocoImage
from data_tools.tags import read_text
from more.errors import UserError

# Looked through in this order, after the folder itself.
FOLDERS = ("train2017", "val2017", "train2014", "val2014", "JPEGImages", "images")
_ENDINGS = (".jpg", ".jpeg", ".png")
_NAME_2014 = re.compile(r"COCO_(?:train|val|test)2014_(\d{12})")
_NAME_2017 = re.compile(r"\d{12}")


def other_names(stem: str) -> list[str]:
    """How the other edition calls the image: 2014 → 2017, 2017 → 2014, nothing for other names."""
    if match := _NAME_2014.fullmatch(stem):
        return [match[1]]
    if _NAME_2017.fullmatch(stem):
        return [f"COCO_{part}2014_{stem}" for part in ("train", "val")]
    return []


class ImageFolder:
    """Finds image files by name; every folder is listed once, no file is touched.

    Args:
        root: folder of the images, or the parent of `FOLDERS`.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder", fix="give the folder of the images")
        self.root = root
        self.bases = [root, *(root / name for name in FOLDERS if (root / name).is_dir())]
        self._listed: dict[Path, frozenset[str]] = {}
        self._places: dict[str, list[tuple[Path, frozenset[str]]]] = {}

    def find(self, file_name: str) -> Path | None:
        """The file: at its path or by its bare name, as named or by the other edition's name."""
        path = PurePosixPath(file_name)
        names = [path.name, *(name + path.suffix for name in other_names(path.stem))]
        places = self._look_in(str(path.parent))
        for name in names:
            for folder, content in places:
                if name in content:
                    return folder / name
        return None

    def _look_in(self, parent: str) -> list[tuple[Path, frozenset[str]]]:
        """Folders that may hold a file of sub-folder `parent`, with their content."""
        if parent not in self._places:
            folders = dict.fromkeys([*(base / parent for base in self.bases), *self.bases])
            self._places[parent] = [(folder, self._list(folder)) for folder in folders]
        return self._places[parent]

    def _list(self, folder: Path) -> frozenset[str]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = frozenset()
        return self._listed[folder]


def read_list(path: Path) -> list[str]:
    """Image names of a text file, one a line; a line may also be a path to an image.

    Raises:
        UserError: no such file, or not a text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such list", fix="give a text file, one image name a line")
    words = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    return [PurePosixPath(word).stem if "/" in word or word.lower().endswith(_ENDINGS) else word
            for word in words]


def choose(images: Sequence[CocoImage], names: Iterable[str], where: Path) -> list[CocoImage]:
    """The images called `names`, in that order; either edition's name will do.

    Raises:
        UserError: names that are not among the images.
    """
    known = {image.name: image for image in images}
    by_other = {other: image for image in images for other in other_names(image.name)}
    names = list(names)
    strange = [name for name in names if name not in known and name not in by_other]
    if strange:
        raise UserError(f"{where}: {len(strange)} of {len(names)} images are not in the "
                        f"annotations: {', '.join(strange[:20])}",
                        fix="remove them from the list, or give the annotations they belong to")
    return [known.get(name) or by_other[name] for name in names]


def locate(images: Sequence[CocoImage], folder: ImageFolder) \
        -> tuple[list[CocoImage], list[Path], list[CocoImage]]:
    """Images that have a file, their files, and the images that have none."""
    found, files, missing = [], [], []
    for image in images:
        path = folder.find(image.file_name)
        if path is None:
            missing.append(image)
        else:
            found.append(image)
            files.append(path)
    return found, files, missing
