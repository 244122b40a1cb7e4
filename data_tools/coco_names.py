"""File names in a COCO file: read as paths, and made into ids."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from more.errors import UserError

_STORAGE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:(?=/)")


class CocoImage(NamedTuple):
    """One image of the file.

    Attributes:
        id: in the file.
        name: its id in the set.
        file_name: as the file writes it.
        height: in pixels; None if the file does not say.
        width: in pixels; None if the file does not say.
    """

    id: int | str
    name: str
    file_name: str
    height: int | None
    width: int | None


def clean_name(file_name: str) -> str:
    """A file name as a relative path with slashes.

    Backslashes become slashes. A leading `./`, `../` or `/`, a drive letter, the host of an address
    and what follows its `?` are removed. Label Studio's `/data/local-files/?d=a/b.jpg` is
    `a/b.jpg`.

    Args:
        file_name: as the file writes it.

    Returns:
        The path; "" if it names no file.
    """
    path = file_name.replace("\\", "/")
    if "?d=" in path:
        path = parse_qs(urlsplit(path).query).get("d", [""])[0]
    elif _STORAGE.match(path):
        parts = urlsplit(path)
        path = parts.path
    path = posixpath.normpath(_DRIVE.sub("", path)) if path else ""
    kept = [part for part in path.split("/") if part not in ("", ".", "..")]
    return "/".join(kept)


def name_images(images: Sequence[CocoImage], where: Path) -> list[CocoImage]:
    """Give images their ids: the file name without ending.

    Images with equal names get the path with `__` for `/`, and paths that differ in their ending
    alone keep the ending.

    Args:
        images: without ids.
        where: the file, for messages.

    Returns:
        The images with ids.

    Raises:
        UserError: a file name is given twice.
    """
    paths = [PurePosixPath(clean_name(image.file_name)) for image in images]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UserError(f"{where}: image name {twice[0]} comes twice",
                        fix="give every image its own file name")
    forms: tuple[Callable[[PurePosixPath], str], ...] = (
        lambda path: path.stem, lambda path: "__".join(path.with_suffix("").parts),
        lambda path: "__".join(path.parts))
    names = [forms[0](path) for path in paths]
    for form in forms[1:]:
        count = Counter(names)
        names = [form(path) if count[name] > 1 else name
                 for path, name in zip(paths, names, strict=True)]
    clashes = [name for name, count in Counter(names).items() if count > 1]
    if clashes:
        raise UserError(f"{where}: several images would get the id {clashes[0]}",
                        fix="rename one of the files")
    return [image._replace(name=name) for image, name in zip(images, names, strict=True)]


def equal_names(images: Sequence[CocoImage]) -> int:
    """How many images have an id made from their path, since their file names are equal."""
    return sum(image.name != PurePosixPath(clean_name(image.file_name)).stem for image in images)
