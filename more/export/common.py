"""What all exports share: opening sets, one checked mask, files that are whole or not there."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from more.data.shards.codec import COMMON, RARE, file_ending, mask_values
from more.data.shards.format import (
    IGNORE,
    TEMPORARY,
    commit,
    is_temporary,
    make_folder,
    sync,
    temporary_path,
    write_file,
)
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError

# Endings that images in an export may have.
ENDINGS = tuple(dict.fromkeys((*COMMON.values(), *RARE.values(), "avif")))


def open_masks(masks: Path | str) -> ShardSet:
    """A set that holds masks, every file hashed.

    Raises:
        UserError: not a shard set, damaged, or without masks.
    """
    source = ShardSet(masks, check="full")
    if not source.has("mask"):
        raise UserError(f"{masks}: holds no masks",
                        fix="give the output of `more refine`, or images with masks")
    return source


def open_images(data: Path | str, source: ShardSet) -> tuple[ShardSet, list[int]]:
    """The set of the images of some masks, and its row for every row of the masks.

    Raises:
        UserError: other classes, an image lacking, or one of another size.
    """
    images, fix = ShardSet(data, kind="images", check="full"), "give the images of these masks"
    if images.class_names != source.class_names:
        raise UserError(f"{source.path} has {source.num_classes} classes, {data} "
                        f"{images.num_classes}, or they differ in name or order", fix=fix)
    place = {name: row for row, name in enumerate(images.ids)}
    strangers = [name for name in source.ids if name not in place]
    if strangers:
        raise UserError(f"{data} lacks {len(strangers)} of the {len(source)} images of "
                        f"{source.path}: {some(strangers)}", fix=fix)
    rows = [place[name] for name in source.ids]
    other = np.flatnonzero((images.sizes[rows] != source.sizes).any(1))
    if len(other):
        raise UserError(f"{data}: {len(other)} images have another size than their mask: "
                        f"{some([source.ids[row] for row in other[:21]])}", fix=fix)
    return images, rows


def mask_of(source: ShardSet, row: int) -> np.ndarray:
    """Label map of a row, uint8 [H, W], of the size that the shard states; 0..C and 255.

    Raises:
        UserError: no mask, damaged, another size, or a value that is no class.
    """
    mask = source.mask(row)
    if mask is None:
        raise UserError("has no mask")
    if mask.shape != tuple(source.sizes[row]):
        raise UserError(f"mask is {mask.shape[0]}x{mask.shape[1]}, the image "
                        f"{source.sizes[row][0]}x{source.sizes[row][1]} (height x width)")
    values = mask_values(mask)
    strange = values[(values > source.num_classes) & (values != IGNORE)]
    if len(strange):
        raise UserError(f"mask holds {strange[:5].tolist()}, known are 0..{source.num_classes} "
                        f"and {IGNORE}")
    return mask


def ending_of(data: bytes | bytearray) -> str:
    """`jpg`, `png`, …: the content decides.

    Raises:
        UserError: the bytes do not begin like an image.
    """
    ending = file_ending(data)
    if ending is None:
        raise UserError("the stored bytes are no image" if data else "has no image")
    return ending


def replace_file(path: Path, data: bytes | bytearray) -> bool:
    """Put `data` under its name in one step; False when it was there already.

    After a power cut the name holds the old content or all of the new. That the name itself is on
    the disk takes a `sync` of the folder, which the caller does once for all of its files.
    """
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    temporary = temporary_path(path)
    try:
        write_file(temporary, data)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets its own name at the end.

    It does not if the body raises or deletes the temporary file: then whatever had the name before
    stays. What an interrupted export of the same name left is removed.

    Raises:
        UserError: a folder has the name, its folder cannot be made, or somebody else writes there.
    """
    refuse_folder(path)
    folder = make_folder(path.parent)
    with folder_lock(folder):
        for stale in folder.glob(f"{glob.escape(path.name)}{TEMPORARY}*"):
            if is_temporary(stale.name):
                stale.unlink(missing_ok=True)
        temporary = temporary_path(path)
        try:
            yield temporary
            if temporary.exists():
                commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Raise UserError when `path`, which is to be a file, is a folder."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder", fix=f"give a file, such as {path}/NAME")


def require_ending(path: Path, ending: str, format: str) -> None:
    """Raise UserError when the name of a file to write does not end as its format does."""
    if not path.name.endswith(ending) or path.name == ending:
        raise UserError(f"--out {path}: --format {format} writes one file NAME{ending}",
                        fix=f"write it like --out {path}{ending}")
    refuse_folder(path)


def write_list(file: IO[str], key: str, items: Iterable[dict[str, Any]]) -> None:
    """`, "key": […]` of a JSON object, one item a line, piece by piece."""
    file.write(f',\n"{key}": [')
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item, ensure_ascii=False))
    file.write("]")


def some(names: list[str], most: int = 20) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def reason(error: Exception) -> str:
    """What an error says, without the remedy."""
    return str(getattr(error, "message", error))
