"""A sheet of sample pictures of a shard set: thumbnails, masks over them, ids and tags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from more.data.shards.format import make_folder, write_atomic
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.captions import drawable, fitted, font
from more.evaluation.pictures import colour_of, mask_overlay, thumbnail

_TEXT, _LINE, _GAP, _LINES = 14, 19, 12, 3  # pixels: letters, line, space between; lines of tags
_WIDEST = 1900  # of the sheet; the number of columns follows from it


@dataclass(frozen=True)
class _Cell:
    """One picture with its caption: RGB `[h, w, 3]`, id, class indices."""

    picture: np.ndarray
    image_id: str
    tags: list[int]


def write_sheet(shards: ShardSet, path: Path, images: int = 24, seed: int = 0) -> list[str]:
    """Draw randomly chosen rows of a set into a PNG file.

    Images with a mask show both, side by side; a set of masks shows these alone. A picture that
    cannot be read becomes a grey field that says so.

    Args:
        shards: a set with images or masks.
        path: the file, ending in .png.
        images: number of pictures, at most that of the set.
        seed: another seed, other pictures.

    Returns:
        Ids of the rows, in order.

    Raises:
        UserError: the set holds neither images nor masks, or `path` does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a sheet is a PNG file", fix="let its name end in .png")
    if not (shards.has("image") or shards.has("mask")):
        raise UserError(f"{shards.path}: {shards.kind} hold no pictures to draw",
                        fix="draw the sheet of the image set, or of masks made from these seeds")
    rng = np.random.default_rng(seed)
    rows = sorted(rng.choice(len(shards), min(images, len(shards)), replace=False).tolist())
    tags = [np.flatnonzero(shards.tags[row]).tolist() for row in rows]
    cells = [_Cell(_picture(shards, row), shards.ids[row], shown)
             for row, shown in zip(rows, tags, strict=True)]
    sheet = _draw(cells, shards.class_names)
    make_folder(path.parent)
    done, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done, "encoding an 8-bit picture cannot fail"
    write_atomic(path, data.tobytes())
    return [cell.image_id for cell in cells]


def _picture(shards: ShardSet, row: int) -> np.ndarray:
    """The thumbnail of a row, with its mask beside it: RGB uint8 `[h, w, 3]`."""
    try:
        image = thumbnail(shards.image(row)) if shards.blob("image", row) else None
        mask = shards.mask(row)
    except UserError:
        return _field("cannot be read")
    if mask is None:
        return _field("no picture") if image is None else image
    label = thumbnail(mask, nearest=True)
    if image is None:
        return mask_overlay(np.full((*label.shape, 3), 90, np.uint8), label)
    if label.shape != image.shape[:2]:
        return _field("mask of another size")
    return np.concatenate([image, np.full((len(image), 2, 3), 255, np.uint8),
                           mask_overlay(image, label)], 1)


def _field(text: str) -> np.ndarray:
    canvas = Image.new("RGB", (200, 120), "#b8b8b8")
    ImageDraw.Draw(canvas).text((100, 60), text, "black", _font(), anchor="mm")
    return np.asarray(canvas)


def _draw(cells: list[_Cell], names: list[str]) -> np.ndarray:
    """Draw all cells in a grid: columns as wide as the widest picture, rows as high as needed."""
    width = max(150, *(cell.picture.shape[1] for cell in cells))
    columns = max(min(_WIDEST // (width + _GAP), len(cells)), 1)
    grid = [cells[start:start + columns] for start in range(0, len(cells), columns)]
    captions = [[_wrapped(cell, names, width) for cell in line] for line in grid]
    heights = [max(cell.picture.shape[0] for cell in line)
               + _LINE * (1 + max(len(caption) for caption in words)) + _GAP
               for line, words in zip(grid, captions, strict=True)]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + _GAP), "white")
    pen, top = ImageDraw.Draw(sheet), _GAP
    for line, words, height in zip(grid, captions, heights, strict=True):
        for column, (cell, caption) in enumerate(zip(line, words, strict=True)):
            left = _GAP + column * (width + _GAP)
            sheet.paste(Image.fromarray(cell.picture), (left, top))
            _write(pen, left, top + cell.picture.shape[0] + 3, cell.image_id, caption, width)
        top += height
    return np.asarray(sheet)


def _write(pen: ImageDraw.ImageDraw, left: int, top: int, image_id: str,
           caption: list[list[tuple[str, int]]], width: int) -> None:
    """The id, then lines of tags, each behind a square in the colour that its masks have."""
    pen.text((left, top), fitted(drawable(image_id), width, _TEXT), "black", _font())
    for tags in caption:
        top, x = top + _LINE, left
        for text, label in tags:
            if label:
                pen.rectangle((x, top + 3, x + 10, top + 13), colour_of(label), "#606060")
                x += 15
            pen.text((x, top), text, "#303030", _font())
            x += _length(text) + 10


def _wrapped(cell: _Cell, names: list[str], width: int) -> list[list[tuple[str, int]]]:
    """Tags as lines of (text, label), as many as fit; the last line counts the others."""
    lines: list[list[tuple[str, int]]] = [[]]
    used = 0
    for number, tag in enumerate(cell.tags):
        text = fitted(drawable(names[tag]), width - 15, _TEXT)
        needed = _length(text) + 25
        if used and used + needed - 10 > width:
            if len(lines) == _LINES:
                lines.append([(f"and {len(cell.tags) - number} more", 0)])
                break
            lines.append([])
            used = 0
        lines[-1].append((text, tag + 1))
        used += needed
    return lines if cell.tags else [[("no tags", 0)]]


def _font() -> ImageFont.FreeTypeFont:
    return font(_TEXT)


def _length(text: str) -> int:
    return round(_font().getlength(text))
