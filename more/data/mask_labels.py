"""Labels for training on masks: a set of masks matched to a set of images by id, and checked."""

from __future__ import annotations

import numpy as np

from more.data.shards.codec import decode_mask
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few

CERTAIN = 255
OUTSIDE = (IGNORE, 0)
"""Label and confidence of pixels that show nothing of an image."""


class Labels:
    """Label and confidence of every pixel of the images of a set.

    Args:
        masks: a set of kind "masks", or of kind "images" with true masks (the supervised case).
        images: the set of images, each with a mask; `match_masks` makes both.
    """

    def __init__(self, masks: ShardSet, images: ShardSet):
        self.masks = masks
        self.rows = [masks.index_of(name) for name in images.ids]

    def __getitem__(self, index: int) -> np.ndarray:
        """Labels of one image. Where masks store no confidence, it is 255 everywhere.

        Args:
            index: number of the image.

        Returns:
            uint8 `[H, W, 2]`: label (255: none) and confidence (0..255) of each pixel.

        Raises:
            UserError: damaged bytes, or values outside the classes.
        """
        row = self.rows[index]
        label = self.masks.mask(row)
        if label.max(initial=0, where=label != IGNORE) > self.masks.num_classes:
            raise UserError(f"{self.masks.path}: {self.masks.ids[row]!r} holds a label above "
                            f"{self.masks.num_classes}", "make the masks again")
        stored = self.masks.blob("confidence", row)
        certain = (decode_mask(stored, self.masks.ids[row]) if stored
                   else np.full_like(label, CERTAIN))
        return np.stack([label, certain], axis=-1)


def match_masks(masks: ShardSet, images: ShardSet) -> tuple[Labels, ShardSet, list[str]]:
    """Match masks and images by id.

    Args:
        masks: a set of kind "masks", or of kind "images" with true masks.
        images: the set of images.

    Returns:
        The labels, the set of the images that have a mask, and the ids of those that have none.

    Raises:
        UserError: other classes; masks of another data set, or of images that the set lacks, or of
            another size, all named; or no image with a mask.
    """
    _check_origin(masks, images)
    where = {name: row for row, name in enumerate(images.ids)}
    masked = [row for row, name in enumerate(masks.ids) if name in where
              and (masks.kind == "masks" or masks.blob("mask", row, check=False))]
    wrong = [masks.ids[row] for row in masked
             if tuple(masks.sizes[row]) != tuple(images.sizes[where[masks.ids[row]]])]
    if wrong:
        raise UserError(f"{masks.path}: {len(wrong)} masks are not as large as their images: "
                        f"{first_few(wrong)}", "make the masks again from this set")
    known = {masks.ids[row] for row in masked}
    lacking = [name for name in images.ids if name not in known]
    if len(lacking) == len(images):
        raise UserError(f"{masks.path}: no mask for any image", "give a set that holds masks")
    rest = images.without(where[name] for name in lacking) if lacking else images
    return Labels(masks, rest), rest, lacking


def _check_origin(masks: ShardSet, images: ShardSet) -> None:
    """Raise UserError unless the masks were made from these images."""
    if masks.kind not in ("masks", "images"):
        raise UserError(f"{masks.path}: holds {masks.kind}, not masks",
                        "give what `more refine` wrote, or a set of images with true masks")
    if masks.class_names != images.class_names:
        raise UserError(f"{masks.path}: its classes differ from those of {images.path}",
                        "take masks that were made from these images")
    known = set(images.ids)
    strangers = [name for name in masks.ids if name not in known]
    own = masks.manifest.provenance.get("data") if masks.kind == "masks" else None
    same = images.manifest.digest in (own, masks.manifest.digest)
    if strangers and not same:  # of the same set: images that are left out because of damage
        raise UserError(f"{masks.path}: {len(strangers)} of its {len(masks)} masks belong to no "
                        f"image of {images.path}: {first_few(strangers)}",
                        "give the image set that the masks were made from")
    if own is not None and not same:
        raise UserError(f"{masks.path}: made from another content of the same ids than "
                        f"{images.path} has now", "make the masks again from this set")
