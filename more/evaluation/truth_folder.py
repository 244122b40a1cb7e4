"""True masks in a folder of PNG files, for sets that were made from tags alone.

The masks may have classes of their own: those are matched to the set's by name, so neither numbers
nor order need agree.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from more.data.class_files import class_file, read_classes
from more.data.image_files import files_below
from more.data.index_masks import align_mask, read_index_png
from more.data.shards.codec import mask_values
from more.data.shards.format import IGNORE, sha256_bytes, sha256_file
from more.data.shards.reader import ShardSet
from more.data.tags import ClassNames
from more.errors import UserError, first_few, need_path

UNKNOWN = ("refuse", "background", "ignore")
_INDICES = "store true masks as PNG files with one class index per pixel"


@dataclass(frozen=True)
class TruthFolder:
    """Where true masks are, and what their numbers mean.

    Attributes:
        folder: of PNG files, at any depth, named like the images.
        classes: file of the classes in the order of the masks' numbers, one a line; None:
            `classes.txt` in the folder.
        unknown: what becomes of a class that the set lacks: "refuse", or its pixels are taken as
            "background" or "ignore"d.
    """

    folder: Path
    classes: Path | None = None
    unknown: str = "refuse"


class FolderTruth:
    """The true masks of an image set, read from a folder; has what scoring asks of an image set.

    Args:
        images: the set that gives ids, names of files, sizes and classes.
        where: the masks.

    Attributes:
        path: the folder.
        ids: of the image set. class_names: of the image set.
        files: the mask of each image; None where the folder has none.

    Raises:
        UserError: no such folder or list, no mask that fits an image, a mask that fits several, or
            classes that do not match.
    """

    def __init__(self, images: ShardSet, where: TruthFolder):
        need_path(where.folder, "give the folder of the true masks", folder=True)
        if where.unknown not in UNKNOWN:
            raise UserError(f"--truth-unknown {where.unknown}: unknown",
                            f"one of {', '.join(UNKNOWN)}")
        self.path, self.images, self.where = where.folder, images, where
        self.ids, self.class_names = images.ids, images.class_names
        self.list = class_file(where.folder, where.classes)
        self.classes = read_classes(where.folder, where.classes, ())
        if not self.classes:
            raise UserError(f"{where.folder}: the numbers in masks need the list of their classes",
                            "give it with --truth-classes FILE, one class a line in the order of "
                            "the numbers")
        self.table, self.unknown = _class_table(self, images.class_names)
        self.files = match_files(images, where.folder)

    def has(self, name: str) -> bool:
        """Whether the truth has payload `name`: it has masks only."""
        return name == "mask"

    def mask(self, row: int) -> np.ndarray | None:
        """True label map `[H, W]` of an image in the set's class numbers; None where there is none.

        Raises:
            UserError: the file is no index mask, has another size than the image, or a number
                that is in no list; it is named.
        """
        path = self.files[row]
        if path is None:
            return None
        try:
            label = read_index_png(path)
        except UserError as error:
            if "--colours" not in str(error.fix):  # which is an option of data_tools alone
                raise
            raise UserError(error.message, _INDICES) from error
        strange = [value for value in mask_values(label) if len(self.classes) < value != IGNORE]
        if strange:
            raise UserError(f"{path}: mask value {strange[-1]}, but {self.list} has "
                            f"{len(self.classes)} classes", "give the list that belongs to these "
                            "masks with --truth-classes")
        size = tuple(int(side) for side in self.images.sizes[row])
        if label.shape != size:
            label = align_mask(label, size, bytes(self.images.blob("image", row)), str(path))
        return self.table[label]

    @property
    def digest(self) -> str:
        """sha256 of image set, masks and the meaning of their numbers."""
        parts = [self.images.manifest.digest, self.table.tobytes().hex()]
        parts += [f"{name} {sha256_file(path)}"
                  for name, path in zip(self.ids, self.files, strict=True) if path is not None]
        return sha256_bytes("\n".join(parts).encode("utf-8"))

    @property
    def lacking(self) -> list[str]:
        """Classes of the set that the truth does not know."""
        known = set(self.table.tolist())
        return [name for number, name in enumerate(self.class_names, 1) if number not in known]

    def record(self, without: Sequence[str]) -> dict[str, Any]:
        """What a score keeps of its truth; `without`: ids that were not scored for lack of it."""
        return {"folder": self.path.name, "classes": self.list.name, "without": len(without),
                "unknown": self.unknown, "unknown_as": self.where.unknown, "lacking": self.lacking}

    def notes(self, without: Sequence[str]) -> list[str]:
        """Lines that belong to a score; `without`: ids that were not scored for lack of truth."""
        lines = [f"truth: masks in {self.path}, classes matched by name with {self.list}"]
        if without:
            lines.append(f"{len(without)} images have no mask in {self.path} and are not scored: "
                         f"{first_few(without)}")
        if self.unknown:
            lines.append(f"classes of the truth that the set lacks, taken as {self.where.unknown}: "
                         f"{', '.join(self.unknown)}")
        if self.lacking:
            lines.append(f"classes of the set that the truth lacks, wrong wherever predicted: "
                         f"{', '.join(self.lacking)}")
        return lines


def _class_table(truth: FolderTruth, class_names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Class number of the set for each value of a mask, uint8 `[256]`; classes that it lacks."""
    known = ClassNames(class_names)
    numbers = [known.find(name) for name in truth.classes]
    unknown = [name for name, number in zip(truth.classes, numbers, strict=True) if number is None]
    if len(unknown) == len(numbers):
        raise UserError(f"{truth.list}: none of its classes ({first_few(unknown)}) is one of the "
                        f"set's ({first_few(class_names)})",
                        "write them as in the set, which data_tools.inspect shows")
    if unknown and truth.where.unknown == "refuse":
        raise UserError(f"{truth.list}: {len(unknown)} of its {len(numbers)} classes are not in "
                        f"the set: {', '.join(unknown)}",
                        "write them as in the set, or say what their pixels are: --truth-unknown "
                        "background, or ignore")
    other = IGNORE if truth.where.unknown == "ignore" else 0
    table = np.zeros(256, np.uint8)
    table[1:len(numbers) + 1] = [other if number is None else number + 1 for number in numbers]
    table[IGNORE] = IGNORE
    return table, unknown


def match_files(images: ShardSet, folder: Path) -> list[Path | None]:
    """The mask of every image: the PNG file of its id, of its file's path, or of its file's name.

    Args:
        images: the image set.
        folder: of the masks.

    Returns:
        A file for each row; None where there is none.

    Raises:
        UserError: two masks of one name, no mask that fits, or one that fits several images.
    """
    paths = [path for path in files_below(folder) if path.suffix.lower() == ".png"]
    whole, bare = _by_name(paths, folder)
    stems = [_stem(images.file_name(row), image_id) for row, image_id in enumerate(images.ids)]
    found = [whole.get(_same(image_id)) or whole.get(stem.replace("/", "__"))
             for image_id, stem in zip(images.ids, stems, strict=True)]
    taken = set(found)
    for row, stem in enumerate(stems):
        other = bare.get(stem.rsplit("/", 1)[-1])
        if found[row] is None and other not in taken:
            found[row] = other
    if not any(found):
        raise UserError(f"{folder}: none of its {len(paths)} PNG files is the mask of an image of "
                        f"{images.path}", f"name masks like their images: {images.ids[0]}.png")
    owner: dict[Path, str] = {}
    for image_id, path in zip(images.ids, found, strict=True):
        if path is not None and owner.setdefault(path, image_id) != image_id:
            raise UserError(f"{path}: is the mask of {owner[path]} and of {image_id}",
                            "put masks into sub-folders as their images, or name them by id")
    return found


def _by_name(paths: Sequence[Path], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files by their path below the folder, with `__` for `/`; and by their name alone, where no
    other file has it."""
    whole: dict[str, Path] = {}
    names: dict[str, list[Path]] = {}
    for path in paths:
        name = _same(path.relative_to(folder).with_suffix("").as_posix()).replace("/", "__")
        if name in whole:
            raise UserError(f"{whole[name]} and {path} are masks of one name",
                            "remove one of them")
        whole[name] = path
        names.setdefault(_same(path.stem), []).append(path)
    return whole, {name: found[0] for name, found in names.items() if len(found) == 1}


def _stem(file: str, image_id: str) -> str:
    """Path of an image's file without ending; its id where the file is not known."""
    return _same(file.removesuffix(PurePosixPath(file).suffix) if file else image_id)


def _same(name: str) -> str:
    """A name for comparing: some systems store letter and accent apart."""
    return unicodedata.normalize("NFC", name)
