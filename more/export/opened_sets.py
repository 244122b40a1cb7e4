"""The masks to export and their images: sets opened and checked, one mask at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from more.data.shards.codec import COMMON, RARE, file_ending, mask_values
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few

# Endings that images in an export may have.
ENDINGS = tuple(dict.fromkeys((*COMMON.values(), *RARE.values(), "avif")))
LISTED = 20
"""Names that a message lists at most."""


def open_masks(masks: Path | str) -> ShardSet:
    """A set that holds masks, every file hashed.

    Args:
        masks: its folder.

    Returns:
        The set.

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

    Args:
        data: folder of the images.
        source: the masks.

    Returns:
        The images, and the row of each mask's image.

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
                        f"{source.path}: {first_few(strangers, LISTED)}", fix=fix)
    rows = [place[name] for name in source.ids]
    other = np.flatnonzero((images.sizes[rows] != source.sizes).any(1))
    if len(other):
        raise UserError(f"{data}: {len(other)} images have another size than their mask: "
                        f"{first_few([source.ids[row] for row in other[:21]], LISTED)}", fix=fix)
    return images, rows


def mask_of(source: ShardSet, row: int) -> np.ndarray:
    """Label map of a row, uint8 [H, W], of the size that the shard states; 0..C and 255.

    Args:
        source: the masks.
        row: of the set.

    Returns:
        The mask.

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

    Args:
        data: of an image file.

    Returns:
        The ending, without a dot.

    Raises:
        UserError: the bytes do not begin like an image.
    """
    ending = file_ending(data)
    if ending is None:
        raise UserError("the stored bytes are no image" if data else "has no image")
    return ending
