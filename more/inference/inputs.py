"""Which pictures a command line means: files, folders, patterns, a list; and what to call them.

A result is named after the picture's path without ending, sub-folders kept:

| given | the path starts below |
|---|---|
| a folder (always with its sub-folders) | that folder |
| a pattern in quotes, such as `'photos/**/a*.jpg'` | its part without `*`, `?` or `[` |
| files, or `-` for a list on stdin | the deepest folder that holds all of these files |

Where pictures of one folder differ in the ending only, the first by name gives it up and the
others keep it: `a.jpg` is called `a`, `a.png` beside it `a.png`. Equal names from different
folders are refused.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from more.data.image_files import IMAGE_ENDINGS, check_utf8, files_below
from more.errors import UserError
from more.progress import console

STDIN = "-"


@dataclass(frozen=True)
class Picture:
    """A file, its path below the folder that was given, and the name of its results."""

    path: Path
    place: str
    name: str

    @property
    def spellings(self) -> list[str]:
        """What a list of tags may call it: its path, that without ending, its name in shards."""
        stem = _stem(self.place)
        return [plain(text) for text in (self.place, stem, stem.replace("/", "__"))]


def plain(name: str) -> str:
    """One spelling of a path that a user wrote, to compare by: accents, `/`, no `./`."""
    return unicodedata.normalize("NFC", name.strip()).replace("\\", "/").removeprefix("./")


def find_pictures(inputs: Sequence[str], out: Path, stdin: BinaryIO | None = None
                  ) -> list[Picture]:
    """Pictures in the order of the inputs, each file once; what lies in `out` is left out.

    Files named one by one may have any ending and need not be images; folders and patterns give
    files with the endings of images. A file of the list that is missing is found out on reading.

    Args:
        inputs: as on the command line.
        out: folder of the results.
        stdin: where a list comes from: a path a line, or separated by zero bytes.

    Returns:
        The pictures with their names.

    Raises:
        UserError: an input that does not exist or lies in `out`, a pattern or folder without
            images altogether, a name that is not UTF-8, two pictures with one name.
    """
    singles = [Path(text) for text in inputs if text != STDIN and Path(text).is_file()]
    files = _from_common(singles)
    for text in dict.fromkeys(inputs):
        if text == STDIN:
            files += _from_common([path for path in _read_list(stdin)])
        elif Path(text).is_dir():
            files += _below(Path(text), Path(text), out)
        elif not Path(text).is_file():
            files += _matching(text, out)
    for text in inputs:
        if text != STDIN and os.path.lexists(text) and _inside(Path(text), out):
            raise UserError(f"{text}: lies in {out}, where the results go",
                            fix="choose another --out")
    unique: dict[str, tuple[Path, str]] = {}
    for path, place in files:
        if not _inside(path, out):
            unique.setdefault(os.path.realpath(path), (path, place))
    if not unique:
        raise UserError(f"{' '.join(inputs)}: no image found",
                        fix=f"give images, or folders with {' '.join(IMAGE_ENDINGS)}")
    check_utf8((place for _, place in unique.values()), "inputs")
    return _named(list(unique.values()))


def _named(files: list[tuple[Path, str]]) -> list[Picture]:
    stems: dict[str, list[tuple[Path, str]]] = {}
    for path, place in files:
        stems.setdefault(_stem(place), []).append((path, place))
    names: dict[Path, str] = {}
    for stem, alike in stems.items():
        alike.sort(key=lambda item: item[1])
        if len({os.path.realpath(path.parent) for path, _ in alike}) > 1:
            raise _same_name(alike[0][0], alike[1][0], stem)
        names.update((path, place if k else stem) for k, (path, place) in enumerate(alike))
    seen: dict[str, Path] = {}
    for path, name in names.items():
        if name in seen:
            raise _same_name(seen[name], path, name)
        seen[name] = path
    return [Picture(path, place, names[path]) for path, place in files]


def _same_name(one: Path, other: Path, name: str) -> UserError:
    return UserError(f"{one} and {other}: the results of both would be called {name}",
                     fix="give one folder that holds both, or an --out for each")


def _stem(place: str) -> str:
    return place.removesuffix(Path(place).suffix)


def _from_common(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files named one by one (or folders in a list) with their paths below a common folder."""
    if not paths:
        return []
    base = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    return [(file, _place(file, base)) for path in paths
            for file in (_images(files_below(path)) if path.is_dir() else [path])]


def _below(folder: Path, base: Path, out: Path) -> list[tuple[Path, str]]:
    """Images of a folder and its sub-folders; the number of other files is said."""
    files = list(files_below(folder, frozenset([os.path.realpath(out)])))
    images = _images(files)
    if len(images) < len(files):
        console.print(f"{folder}: other files, left out: {len(files) - len(images)}",
                      highlight=False, markup=False)
    return [(path, _place(path, base)) for path in images]


def _matching(pattern: str, out: Path) -> list[tuple[Path, str]]:
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise UserError(f"{pattern}: no such file or folder, or nothing matches it",
                        fix="give images, folders, patterns in quotes, or - for a list on stdin")
    base = Path(*takewhile(lambda part: not re.search(r"[*?[]", part), Path(pattern).parts))
    folders = [path for path in found if path.is_dir()]
    if folders == found:  # `photos/2024-*`; with `**` folders only come along
        return [file for folder in folders for file in _below(folder, base, out)]
    return [(path, _place(path, base)) for path in _images(found) if not path.is_dir()]


def _read_list(stdin: BinaryIO | None) -> list[Path]:
    text = stdin.read() if stdin is not None else b""
    lines = text.split(b"\0") if b"\0" in text else text.splitlines()
    return [Path(os.fsdecode(line)) for line in lines if line.strip()]


def _images(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in IMAGE_ENDINGS]


def _place(path: Path, base: Path | str) -> str:
    """The path below `base`, without `..` inside; the bare name of what lies elsewhere."""
    place = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
    return path.name if place.startswith(os.pardir + os.sep) else place


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
