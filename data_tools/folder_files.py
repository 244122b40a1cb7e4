"""What a folder of your own pictures holds: images with ids, masks, and the split into sets."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from data_tools.class_lists import TAG_ENDINGS
from more.data.image_files import check_utf8, files_below, shown
from more.data.split_parts import SplitPart, assign, parse_parts
from more.errors import UserError, first_few, need_path
from more.progress import say

FOLDERS = "folders"


@dataclass(frozen=True)
class Layout:
    """Where images, masks and tags are.

    Attributes:
        images: folder of the images.
        masks: folder of the masks, or None.
        tags: a file, "folders" if sub-folder names are tags, or None if tags come from masks.
    """

    images: Path
    masks: Path | None
    tags: Path | str | None

    @property
    def source(self) -> str:
        """What tags come from: "csv", "json", "folders" or "masks"."""
        if isinstance(self.tags, Path):
            return "csv" if self.tags.suffix.lower() == ".csv" else "json"
        return self.tags or "masks"


@dataclass(frozen=True)
class Item:
    """An image: its id in the set, its path below the image folder as text, and its file."""

    id: str
    name: str
    path: Path


def composed(name: str) -> str:
    """A name for comparing, accents in one form: some systems store letter and accent apart."""
    return unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    """A path that a user wrote in one form, for comparing: accents, slashes, no leading `./`."""
    return composed(name.strip()).replace("\\", "/").removeprefix("./")


def find_layout(root: Path, masks: Path | None, tags: Path | None, from_folders: bool) -> Layout:
    """Find images, masks and tags.

    `root` is the folder of the images, or holds a folder `images`; then masks and tags beside that
    are taken, too.

    Args:
        root: the folder that the user gave.
        masks: folder of masks that the user gave.
        tags: file of tags that the user gave.
        from_folders: whether sub-folder names are tags.

    Returns:
        The layout.

    Raises:
        UserError: no such folder, VOC's layout, two sources of tags, or images among the masks.
    """
    need_path(root, "give the folder of the images", folder=True)
    if tags is not None and from_folders:
        raise UserError("--tags and --tags-from-folders: two sources of tags", fix="give one")
    if (root / "JPEGImages").is_dir():  # its masks would be taken for pictures
        raise UserError(f"{root}: is a folder in VOC's layout (it holds JPEGImages)",
                        fix=f"python -m data_tools.voc {root} SET")
    images = root / "images" if (root / "images").is_dir() else root
    beside = [path for path in (root / f"tags{ending}" for ending in TAG_ENDINGS)
              if path.is_file() and tags is None and not from_folders]
    if images != root:
        if len(beside) > 1:
            raise UserError(f"{root}: {' and '.join(path.name for path in beside)}",
                            fix=f"choose with --tags {beside[0]}")
        found = ["images", *(path.name for path in beside)]
        if masks is None and (root / "masks").is_dir():
            masks = root / "masks"
            found.append(masks.name)
        say(f"taken from {root}: {', '.join(found)}")
        tags = beside[0] if beside else tags
    elif beside and masks is None:
        raise UserError(f"{root}: no tags given", fix=f"add --tags {beside[0]}")
    if masks is not None and Path(os.path.realpath(images)).is_relative_to(os.path.realpath(masks)):
        raise UserError(f"{masks}: images and masks are in one folder",
                        fix="move the masks to a folder of their own, at the same relative paths")
    return Layout(images, masks, FOLDERS if from_folders else tags)


def list_files(folder: Path, endings: Sequence[str], what: str, leave_out: Path | None = None,
               known: Sequence[Path | None] = ()) -> dict[str, Item]:
    """Find files of some kinds; how many others there are is printed.

    The id is the path below `folder` without ending, letter for letter, with `__` for `/`.

    Args:
        folder: where to look, at any depth.
        endings: of the files, in small letters.
        what: what the files are, in the plural, for messages.
        leave_out: a folder that is not entered.
        known: files that have another use and need not be counted.

    Returns:
        The files by id, sorted.

    Raises:
        UserError: no such folder, a name that is not UTF-8, two files with one id, or a link to a
            missing file.
    """
    need_path(folder, f"give the folder of the {what}", folder=True)
    found: dict[str, Item] = {}  # by what ids are compared by
    others, expected = [], {os.path.realpath(path) for path in known if path is not None}
    above = frozenset() if leave_out is None else frozenset([os.path.realpath(leave_out)])
    paths = list(files_below(folder, above))
    check_utf8((path.relative_to(folder).as_posix() for path in paths
                if path.suffix.lower() in endings), str(folder))
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in endings:
            others += [] if os.path.realpath(path) in expected else [shown(name)]
            continue
        item = Item(name.removesuffix(path.suffix).replace("/", "__"), name, path)
        key = composed(item.id)
        if key in found:
            raise UserError(f"{folder}: {found[key].name} and {name} have the same id "
                            f"{item.id!r}", fix="rename or remove one of them")
        if not path.is_file():
            raise UserError(f"{path}: a link to a missing file", fix="mend or remove the link")
        found[key] = item
    if others:
        say(f"{folder}: other files, left out: {len(others)} ({first_few(others)})")
    return {item.id: item for item in sorted(found.values(), key=lambda item: item.id)}


def find_masks(folder: Path, images: Mapping[str, Item],
               known: Sequence[Path | None] = ()) -> dict[str, Path]:
    """Find masks: PNG files at the same path as their images. Masks of no image are printed.

    Args:
        folder: of the masks.
        images: by id.
        known: files that have another use and need not be counted.

    Returns:
        Mask files by id.

    Raises:
        UserError: no such folder, two masks with one id, or none of its files fits an image.
    """
    files = {composed(name): item for name, item
             in list_files(folder, (".png",), "masks", known=known).items()}
    keys = {name: composed(name) for name in images}
    masks = {name: files[key].path for name, key in keys.items() if key in files}
    if not masks:
        first = next(iter(images.values())).name
        raise UserError(f"{folder}: none of its {len(files)} PNG files is the mask of an image",
                        fix=f"name masks like their images: {Path(first).with_suffix('.png')} for "
                            f"{first}")
    strays = [files[key].name for key in sorted(files.keys() - set(keys.values()))]
    if strays:
        say(f"{folder}: masks of no image: {len(strays)} ({first_few(strays)})")
    return masks


def spellings(images: Mapping[str, Item]) -> dict[str, str]:
    """All ways to name an image in `plain` text.

    Args:
        images: by id.

    Returns:
        Id by name: the image's path, its path without ending, its id.
    """
    names = {item.name: item.id for item in images.values()}
    names.update((item.name.removesuffix(item.path.suffix), item.id) for item in images.values())
    names.update((name, name) for name in images)  # an id goes first where two are meant
    return {composed(name): image_id for name, image_id in names.items()}


def by_its_tail(text: str, names: Mapping[str, str]) -> str | None:
    """Find the image whose path is the end of a longer one.

    Tools write paths of their own storage: `/data/upload/1/a.jpg`, `C:\\work\\a.jpg`,
    `https://host/a%20b.jpg`. The longest end that is an image counts.

    Args:
        text: the longer path.
        names: see `spellings`.

    Returns:
        The image's id, or None.
    """
    for path in dict.fromkeys([plain(text), plain(unquote(text))]):
        parts = path.split("/")
        for start in range(len(parts)):
            if (found := names.get("/".join(parts[start:]))) is not None:
                return found
    return None


def split_ids(images: Mapping[str, Item], splits: Sequence[str],
              seed: int) -> dict[str, tuple[SplitPart, list[str]]]:
    """Split the images by texts such as `NAME=SHARE` and `NAME=LIST`.

    Lines of a list may name an image by its path. How many images are in no part is printed.

    Args:
        images: by id.
        splits: what the user wrote.
        seed: another seed, other images in the shares.

    Returns:
        By name the part that was asked for, and its ids, sorted.

    Raises:
        UserError: see `parse_parts` and `assign`.
    """
    names = spellings(images)
    parts = [part if part.ids is None else
             replace(part, ids=tuple(dict.fromkeys(names.get(plain(line), line)
                                                   for line in part.ids)))
             for part in parse_parts(splits, "--split")]
    dealt = assign(list(images), parts, seed)
    say("splits: " + ", ".join(f"{name} {len(ids)}" for name, ids in dealt.items())
        + f"; {len(images) - sum(map(len, dealt.values()))} of {len(images)} images unused")
    return {part.name: (part, dealt[part.name]) for part in parts}
