"""A picture of a run with captions, for a README or a slide: what each stage made of some images.

Upper rows: images of the training set with CAM, LAM, mask and truth. Lower rows: images that no
network was trained on, with what stage two says of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from more.data.seeds import seed_label, seed_probabilities
from more.data.shards.format import make_folder, write_atomic
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.gallery import find_data
from more.evaluation.pictures import heat_overlay, mask_overlay, thumbnail
from more.evaluation.score_count import read_seed
from more.evaluation.score_sets import seed_threshold
from more.palette import palette as colours_of
from more.run_folder import STAGE_TWO

Tile = Callable[[str], np.ndarray | None]
INCHES = 1.5  # width of a tile
CAPTIONS, GAP = 0.45, 0.06  # inches: a block's titles, and between its rows
DOTS = 140  # of the picture, an inch
TILE = 250  # pixels of a label map: its names are then readable on the tile


@dataclass(frozen=True)
class Block:
    """Rows of images with equal columns."""

    title: str
    ids: list[str]
    columns: dict[str, Tile]


def draw_strip(run: Path, out: Path, images: int, seed: int = 0, palette: str = "voc") -> Path:
    """Write the picture.

    Args:
        run: run folder of stage one, with `seeds/*` and `masks/*`; its folder `two` may hold the
            same of other images.
        out: file to write; its ending says the format.
        images: rows of each block, chosen at random.
        seed: chooses others.
        palette: colours of the classes, see `more.palette.palette`.

    Returns:
        `out`.

    Raises:
        UserError: another ending; the run has no seeds or masks, or their images are not found.
    """
    _check_ending(out)
    rng, colours = np.random.default_rng(seed), colours_of(palette)
    blocks = [_block(run, "training images: the tags are known", ("cam", "lam"), images, rng,
                     colours)]
    if (run / STAGE_TWO / "masks").is_dir():
        blocks.append(_block(run / STAGE_TWO, "new images: no tags are given", (), images, rng,
                             colours))
    _draw([block for block in blocks if block.ids], out)
    return out


def _check_ending(out: Path) -> None:
    """Refuse a file that matplotlib cannot write, or would write under another name."""
    from matplotlib.backend_bases import FigureCanvasBase

    if out.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--strip {out}: its ending says no format of pictures",
                        "let the name end with .png or .jpg")


def _block(run: Path, title: str, kinds: Sequence[str], count: int,
           rng: np.random.Generator, colours: np.ndarray) -> Block:
    masks = sorted(path for path in (run / "masks").glob("*") if path.is_dir())
    if not masks:
        raise UserError(f"{run}/masks: no masks to show", "refine the run's seeds first")
    mask = ShardSet(masks[0], kind="masks")
    folder = find_data(run, [mask])
    if folder is None:
        raise UserError(f"{masks[0]}: its images were not found", "keep the image set where it was")
    data = ShardSet(folder, kind="images")
    columns: dict[str, Tile] = {"image": lambda name: data.image(data.index_of(name))}
    for kind in kinds:
        if (run / "seeds" / kind).is_dir():
            columns[kind.upper()] = _heat(data, ShardSet(run / "seeds" / kind, kind="seeds"))
    own = "mask after CRF" if kinds else "stage two, after CRF"
    columns[own] = _labels(data, mask, colours)
    if data.has("mask"):
        columns["truth"] = _labels(data, data, colours)
    held = set(data.ids)
    ids = [name for name in mask.ids if name in held]
    chosen = rng.permutation(len(ids))[:count]
    return Block(title, [ids[place] for place in chosen], columns)


def _heat(data: ShardSet, seeds: ShardSet) -> Tile:
    """The strongest map of a picture, outlined at the set's threshold."""
    def tile(name: str) -> np.ndarray | None:
        """The heat map of an image; None where it has no seed."""
        image = data.image(data.index_of(name))
        if name not in seeds.ids:
            return None
        seed = read_seed(seeds, seeds.index_of(name))
        maps = seed_probabilities(seed, image.shape[:2])[1][1:]
        value = maps.max(0) if len(maps) else np.zeros(image.shape[:2], np.float32)
        return heat_overlay(image, value, seed_label(seed, image.shape[:2], seed_threshold(seeds)))
    return tile


def _labels(data: ShardSet, masks: ShardSet, colours: np.ndarray) -> Tile:
    """A label map over its picture, with the names of its classes large enough for a tile."""
    def tile(name: str) -> np.ndarray | None:
        """The label map of an image; None where it has none."""
        label = masks.mask(masks.index_of(name))
        if label is None:
            return None
        image = thumbnail(data.image(data.index_of(name)), side=TILE)
        return mask_overlay(image, thumbnail(label, nearest=True, side=TILE), colours,
                            data.class_names)
    return tile


def _draw(blocks: Sequence[Block], out: Path) -> None:
    """All blocks below one another, their captions above the columns, each row as high as it needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(block.columns) for block in blocks)
    rows = [[[tile(name) for tile in block.columns.values()] for name in block.ids]
            for block in blocks]
    heights = [[_height(row) for row in block] for block in rows]
    inches = [INCHES * sum(block) + CAPTIONS + GAP * len(block) for block in heights]
    figure = Figure(figsize=(INCHES * columns, sum(inches)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=inches)[:, 0]
    for part, block, pictures, ratios in zip(parts, blocks, rows, heights, strict=True):
        part.suptitle(block.title, fontsize=9, parse_math=False)  # names may hold `$`
        grid = part.subplots(len(block.ids), columns, squeeze=False,
                             gridspec_kw={"height_ratios": ratios})
        for axes in grid.flat:
            axes.axis("off")
        for axes, caption in zip(grid[0], block.columns, strict=False):
            axes.set_title(caption, fontsize=8, parse_math=False)
        for line, row in zip(grid, pictures, strict=True):
            for axes, picture in zip(line, row, strict=False):
                if picture is not None:
                    axes.imshow(picture, interpolation="lanczos")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix.lower().lstrip("."), dpi=DOTS)
    make_folder(out.parent)
    write_atomic(out, buffer.getvalue())


def _height(row: Sequence[np.ndarray | None]) -> float:
    """Height of a row of pictures as a share of a column's width; a tall picture is made narrower.
    """
    return max(min(picture.shape[0] / picture.shape[1], 1.0)
               for picture in row if picture is not None)
