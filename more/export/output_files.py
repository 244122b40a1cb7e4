"""The files that exports write: whole or not there."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from more.data.shards.format import (
    TEMPORARY,
    commit,
    is_temporary,
    make_folder,
    sync,
    temporary_path,
    write_file,
)
from more.data.shards.lock import folder_lock
from more.errors import UserError


def replace_file(path: Path, data: bytes | bytearray) -> bool:
    """Put `data` under its name in one step; False when it was there already.

    After a power cut the name holds the old content or all of the new. That the name itself is on
    the disk takes a `sync` of the folder, which the caller does once for all of its files.

    Args:
        path: the file.
        data: its content.

    Returns:
        True if it was written.
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

    Args:
        path: the file.

    Yields:
        The temporary name.

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


def reason(error: Exception) -> str:
    """What an error says, without the remedy."""
    return str(getattr(error, "message", error))
