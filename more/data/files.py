"""Image files below a folder, for everything that takes a user's own pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files at any depth in the order of their names, hidden ones left out; links are followed.

    Args:
        folder: where to look.
        above: real paths that are not entered; a link to a folder above would go round for ever.
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
