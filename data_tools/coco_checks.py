"""Checks of a COCO file before anything is written, and remarks about it for the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.coco_categories import Classes
from data_tools.coco_files import ImageFolder
from data_tools.coco_index import Counts
from data_tools.coco_names import CocoImage
from more.errors import UserError, first_few


def check_missing(missing: Sequence[CocoImage], wanted: Sequence[CocoImage], folder: ImageFolder,
                  skip_bad: bool) -> None:
    """Refuse images without a file.

    Args:
        missing: those without a file.
        wanted: all that are to be converted.
        folder: where images were looked for.
        skip_bad: allow them, unless all are missing.

    Raises:
        UserError: images are missing.
    """
    if missing and (not skip_bad or len(missing) == len(wanted)):
        first = first_few([image.file_name for image in missing], 20)
        raise UserError(f"{folder.root}: {len(missing)} of {len(wanted)} images have no file: "
                        f"{first}", fix="give the folder that holds them, complete it, or choose "
                        "images with --list; --skip-bad leaves out those without a file")


def check_counts(counts: Counts, instances: Path, images: Sequence[CocoImage], *, masks: bool,
                 skip_bad: bool) -> None:
    """Refuse annotations that would give wrong tags or empty masks.

    Args:
        counts: of the annotations.
        instances: the file, for messages.
        images: of the file.
        masks: whether masks are wanted.
        skip_bad: allow unknown categories and unlisted images.

    Raises:
        UserError: unknown categories or mostly unlisted images (without `skip_bad`), or masks
            are wanted and no annotation has a segmentation.
    """
    if counts.unknown_category and not skip_bad:
        raise UserError(f"{instances}: {counts.unknown_category} annotations name a category that "
                        f"the file does not have: {', '.join(counts.examples)}",
                        fix="complete the categories, or leave these annotations out with "
                            "--skip-bad")
    known = counts.annotations + counts.other_images + counts.unknown_category
    if counts.unlisted_images > known and not skip_bad:
        raise UserError(f"{instances}: {counts.unlisted_images} of "
                        f"{counts.unlisted_images + known} annotations belong to no image of the "
                        f"file: image_id {counts.strange_id!r}, while images have ids such as "
                        f"{images[0].id!r}",
                        fix="give the file that lists these images; --skip-bad goes on without "
                            "these annotations")
    if masks and not counts.regions and counts.empty_segmentations:
        raise UserError(f"{instances}: no annotation has a segmentation "
                        f"({counts.empty_segmentations} have none), so every mask would be empty",
                        fix="--no-masks makes a set of tags from boxes; for masks export polygons "
                            "or run lengths")


def class_notes(classes: Classes) -> list[str]:
    """Sentences about categories that were joined, left out, or look odd."""
    notes = [f"category {category.id} ({category.name}) joins class "
             f"{classes.kept[classes.labels[category.id] - 1].name}" for category in classes.joined]
    notes += [f"category {category.id} ({category.name}) is no class: {why}"
              for category, why in classes.left_out]
    return notes + classes.notes


def region_notes(counts: Counts, draw_crowds: bool) -> list[str]:
    """Sentences about regions that leave less in the masks than one would expect."""
    notes = []
    if 2 * counts.crowd_regions > counts.annotations and not draw_crowds and counts.regions:
        notes.append(f"WARNING: {counts.crowd_regions} of {counts.annotations} regions are crowds "
                     "(iscrowd: 1) and are 255 in the masks, which is no class. CVAT writes every "
                     "mask so: --crowds draw draws them like other regions (into a new folder)")
    if 2 * counts.no_pixel > counts.regions:
        notes.append(f"WARNING: {counts.no_pixel} polygons or run lengths draw no pixel, of "
                     f"{counts.regions} regions: are the coordinates pixels, or parts of the image "
                     "from 0 to 1?")
    if not counts.annotations:
        notes.append("no annotation belongs to these images: all of them are negatives")
    return notes
