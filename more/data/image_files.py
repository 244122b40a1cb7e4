"""Finding image files below a folder, and file names in messages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import features

from more.errors import UserError, first_few

# The endings of images; the last ones where Pillow was built with their decoders.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm",
                 ".pgm", *(ending for ending, codec in ((".avif", "avif"), (".jp2", "jpg_2000"))
                           if features.check(codec)))


def shown(name: str) -> str:
    """A file name for messages; if it is not UTF-8, as bash writes it: `$'caf\\xe9.jpg'`."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "$'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else
                              f"\\x{byte:02x}" for byte in os.fsencode(name)) + "'"
    return name


def check_utf8(names: Iterable[str], where: str) -> None:
    """Refuse file names that are not UTF-8, since shards and lists hold text.

    Args:
        names: file names or paths, as the system gave them.
        where: what holds the files, for the message.

    Raises:
        UserError: some are not (names the first ones).
    """
    odd = [text for name in names if (text := shown(name)) != name]
    if odd:
        raise UserError(f"{shown(where)}: {len(odd)} file names are not UTF-8: "
                        f"{first_few(odd)}",
                        fix=f"rename them (in bash, mv {odd[0]} NEW finds the first; for all of "
                            "them, convmv -f latin1 -t utf8 -r FOLDER)")


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files at any depth in the order of their names, without hidden ones; links are followed.

    Args:
        folder: where to look.
        above: real paths of folders not to enter. The folders above belong to them: a link to one
            would lead in a circle.

    Yields:
        The files.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from files_below(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)
