"""Image files of a COCO folder, in the layouts and under the names of 2014 and 2017."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from PIL import Image

from data_tools.coco_names import CocoImage, clean_name
from more.data.shards.codec import UNREADABLE
from more.data.tags import read_text
from more.errors import UserError, first_few, need_path

# Looked through in this order, after the folder itself.
FOLDERS = ("train2017", "val2017", "train2014", "val2014", "JPEGImages", "images")
_ENDINGS = (".jpg", ".jpeg", ".png")
_NAME_2014 = re.compile(r"COCO_(?:train|val|test)2014_(\d{12})")
_NAME_2017 = re.compile(r"\d{12}")


def other_names(stem: str) -> list[str]:
    """Names that the other edition (2014 or 2017) gives to an image; none for names of neither."""
    if match := _NAME_2014.fullmatch(stem):
        return [match[1]]
    if _NAME_2017.fullmatch(stem):
        return [f"COCO_{part}2014_{stem}" for part in ("train", "val")]
    return []


class ImageFolder:
    """Finds image files by name; every folder is listed once, no file is opened.

    Args:
        root: folder of the images, or the parent of `FOLDERS`.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Path):
        need_path(root, "give the folder of the images", folder=True)
        self.root = root
        self.bases = [root, *(root / name for name in FOLDERS if (root / name).is_dir())]
        self._listed: dict[Path, dict[str | tuple[str, str], str | None]] = {}
        self._places: dict[str, list[Path]] = {}

    def find(self, file_name: str) -> Path | None:
        """Find an image: at its path, at the end of its path, or by its name alone.

        Tried are the name as written (see `clean_name`), the other edition's name, the name with
        `%20` and the like decoded, and the ending in other case (if only one file has it).

        Args:
            file_name: as the annotations write it.

        Returns:
            The file, or None.
        """
        cleaned = clean_name(file_name)
        for form in dict.fromkeys((cleaned, clean_name(unquote(cleaned)))):
            parts = form.split("/")
            for start in range(len(parts)):
                if found := self._at(PurePosixPath(*parts[start:])):
                    return found
        return None

    def name_of(self, file: Path) -> str:
        """Where a found file lies in the folder, with slashes."""
        return file.relative_to(self.root).as_posix()

    def _at(self, path: PurePosixPath) -> Path | None:
        names = [path.name, *(name + path.suffix for name in other_names(path.stem))]
        places = self._look_in(str(path.parent))
        for name in names:
            for folder in places:
                if name in self._list(folder):
                    return folder / name
        for folder in places:
            other = self._list(folder).get((path.stem, path.suffix.lower()))
            if other:
                return folder / other
        return None

    def _look_in(self, parent: str) -> list[Path]:
        """Folders that may hold a file of sub-folder `parent`."""
        if parent not in self._places:
            folders = dict.fromkeys(base / parent for base in self.bases)
            self._places[parent] = [folder for folder in folders if self._list(folder)]
        return self._places[parent]

    def _list(self, folder: Path) -> dict[str | tuple[str, str], str | None]:
        """Names in a folder: as they are, and by stem and small ending (None: several files)."""
        if folder not in self._listed:
            content: dict[str | tuple[str, str], str | None] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        path = PurePosixPath(entry.name)
                        key = path.stem, path.suffix.lower()
                        content[key] = None if key in content else entry.name
                        content[entry.name] = entry.name
            except (FileNotFoundError, NotADirectoryError):
                pass
            self._listed[folder] = content
        return self._listed[folder]


def read_list(path: Path) -> list[str]:
    """Read image names from a text file, one a line; a line may also be a path to an image.

    Args:
        path: the file.

    Returns:
        The first word of each line.

    Raises:
        UserError: no such file, or not a text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such list", fix="give a text file, one image name a line")
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def bare_name(word: str) -> str:
    """A name of a list without folder and without the ending of an image."""
    return (PurePosixPath(word).stem if "/" in word or word.lower().endswith(_ENDINGS) else word)


def choose(images: Sequence[CocoImage], names: Iterable[str], where: Path) -> list[CocoImage]:
    """Find the images that a list names by id, by path or by either edition's name.

    Args:
        images: of the annotations.
        names: of the list.
        where: the list, for messages.

    Returns:
        The images in the order of the list.

    Raises:
        UserError: names that are not among the images.
    """
    known = {other: image for image in images for other in other_names(image.name)}
    known.update((clean_name(image.file_name), image) for image in images)
    known.update((image.name, image) for image in images)
    names = list(names)
    found = [known.get(name) or known.get(clean_name(name)) or known.get(bare_name(name))
             for name in names]
    strange = [name for name, image in zip(names, found, strict=True) if image is None]
    if strange:
        raise UserError(f"{where}: {len(strange)} of {len(names)} images are not in the "
                        f"annotations: {first_few(strange, 20)}",
                        fix="remove them from the list, or give the annotations they belong to")
    return [image for image in found if image is not None]


def locate(images: Sequence[CocoImage], folder: ImageFolder) \
        -> tuple[list[CocoImage], list[Path], list[CocoImage]]:
    """Find the files of images.

    Args:
        images: of the annotations.
        folder: where to look.

    Returns:
        Images that have a file, their files, and the images that have none.

    Raises:
        UserError: one file is found for two images.
    """
    found, files, missing = [], [], []
    owners: dict[Path, CocoImage] = {}
    for image in images:
        path = folder.find(image.file_name)
        if path is None:
            missing.append(image)
            continue
        other = owners.setdefault(path, image)
        if other is not image:
            raise UserError(f"{path}: the file of both {other.file_name} and {image.file_name}",
                            fix="give the folder that holds both, each at the path that the "
                            "annotations name")
        found.append(image)
        files.append(path)
    return found, files, missing


def renamed(images: Sequence[CocoImage], files: Sequence[Path]) -> int:
    """How many files are not named exactly as the annotations write them."""
    return sum(not f"/{file.as_posix()}".endswith(f"/{image.file_name}")
               for image, file in zip(images, files, strict=True))


def with_sizes(images: Sequence[CocoImage], files: Sequence[Path]) -> tuple[list[CocoImage], int]:
    """Complete missing heights and widths from the image files.

    For an image that EXIF turns it is the size that viewers show, as in annotations that have it.
    An unreadable image gets 1x1; the conversion names it later.

    Args:
        images: of the annotations.
        files: their files.

    Returns:
        The images with sizes, and how many sizes were missing.
    """
    whole, read = [], 0
    for image, file in zip(images, files, strict=True):
        if image.height is None or image.width is None:
            height, width = _size(file)
            image, read = image._replace(height=height, width=width), read + 1
        whole.append(image)
    return whole, read


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except UNREADABLE:
        return 1, 1
    return (width, height) if turned else (height, width)
