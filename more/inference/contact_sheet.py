"""One picture of what `more predict` made: the overlays of a folder in a grid, with their names."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from more.data.shards.format import write_atomic
from more.evaluation.captions import drawable, fitted, font
from more.inference.predict_files import Result
from more.progress import say

SHEET = "contact_sheet.jpg"
MOST = 64
_OVERLAY = "_overlay.jpg"
_MARK = b"more predict: contact sheet"  # JPEG comment: tells ours from a user's file of the name
_SIDE, _GAP, _TEXT, _LINE = 220, 10, 13, 20  # pixels: picture, space between, letters, caption
_UNREADABLE = (OSError, ValueError, Image.DecompressionBombError)


def write_contact_sheet(out: Path) -> Path | None:
    """Draw the overlays of a folder on `OUT/contact_sheet.jpg`, from 65 on evenly spread ones.

    It shows the folder as it is, the results of earlier calls too. Where there is no overlay, an
    older sheet is removed. A file of that name that is no such sheet is left alone, which is said.

    Args:
        out: folder of results, whose lock is held.

    Returns:
        The sheet; None where none was drawn.

    Raises:
        OSError: it cannot be written.
    """
    path, results = out / SHEET, _results(out)
    if not results:
        remove_contact_sheet(out)
        return None
    if _foreign(path):
        say(f"{path}: no contact sheet of `more predict`, left as it is, no sheet is "
            "drawn; choose another --out, or rename it")
        return None
    places = np.linspace(0, len(results) - 1, min(len(results), MOST)).round().astype(int)
    title = f"{len(places)} of {len(results)} pictures" if len(results) > MOST else ""
    buffer = io.BytesIO()
    _draw([results[place] for place in places], title).save(
        buffer, "JPEG", quality=88, comment=_MARK)
    write_atomic(path, buffer.getvalue())
    return path


def remove_contact_sheet(out: Path) -> None:
    """Delete the folder's sheet if it is one.

    Args:
        out: folder of results.
    """
    if not _foreign(out / SHEET):
        (out / SHEET).unlink(missing_ok=True)


def contact_sheet(out: Path) -> Path | None:
    """The folder's sheet.

    Args:
        out: folder of results.

    Returns:
        The file; None where there is none, or one of that name that is no sheet.
    """
    path = out / SHEET
    return path if path.is_file() and not _foreign(path) else None


def _results(out: Path) -> list[Result]:
    """Results with an overlay, by name."""
    names = (path.relative_to(out).as_posix().removesuffix(_OVERLAY)
             for path in out.rglob(f"*{_OVERLAY}"))
    results = (Result(out, name) for name in sorted(names))
    return [result for result in results if result.facts.is_file()]


def _foreign(path: Path) -> bool:
    """Whether something has the name that no earlier call made."""
    try:
        with Image.open(path) as image:
            return image.info.get("comment") != _MARK
    except FileNotFoundError:
        return path.is_symlink()
    except _UNREADABLE:
        return True


def _draw(results: list[Result], title: str) -> Image.Image:
    columns = math.ceil(math.sqrt(len(results)))
    rows, top = math.ceil(len(results) / columns), _LINE if title else 0
    wide, high = _SIDE + _GAP, _SIDE + _LINE + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP + top), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP // 2), title, "black", font(_TEXT))
    for place, result in enumerate(results):
        row, column = divmod(place, columns)
        left, upper = _GAP + column * wide, _GAP + top + row * high
        picture = _thumbnail(result.overlay)
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2,
                              upper + (_SIDE - picture.height) // 2))
        nothing = _without_class(result)
        name = drawable(f"{result.name} (no class)" if nothing else result.name)
        pen.text((left, upper + _SIDE + 2), fitted(name, _SIDE, _TEXT),
                 "#b02020" if nothing else "black", font(_TEXT))
    return sheet


def _without_class(result: Result) -> bool:
    try:
        return result.without_class()
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged facts: the next call makes the result again


def _thumbnail(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_SIDE, _SIDE))  # a JPEG is read at a fraction of its size
            image.thumbnail((_SIDE, _SIDE))
            return image.convert("RGB")
    except _UNREADABLE:
        field = Image.new("RGB", (_SIDE, _SIDE // 2), "#b8b8b8")
        ImageDraw.Draw(field).text((_SIDE // 2, _SIDE // 4), "cannot be shown", "black",
                                   font(_TEXT), anchor="mm")
        return field
