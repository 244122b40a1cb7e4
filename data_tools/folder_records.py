"""Records of a folder's images: masks, tags and classes found, checked and printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from data_tools.convert import Record
from data_tools.folder_files import Item, Layout, find_masks
from data_tools.folder_tags import named_tags, say_unused, tag_lines, used_classes
from data_tools.image_checks import probe_masks
from data_tools.mask_meaning import LABELMAP, Meaning
from more.data.class_files import CLASS_FILES, check_classes, class_file, read_classes
from more.data.index_masks import read_index_png
from more.data.tags import class_indices
from more.errors import UserError, first_few
from more.progress import say


def _need_tags(layout: Layout, images: Mapping[str, Item], masks: Mapping[str, Path]) -> None:
    """Raise unless tags are given or every image has a mask to take them from."""
    if layout.tags is not None or len(masks) == len(images):
        return
    fix = "give --tags FILE.csv, or --tags-from-folders where sub-folders are classes"
    if layout.masks is None:
        raise UserError(f"{layout.images}: nothing to take tags from",
                        fix=f"{fix}, or --masks DIR")
    without = [name for name in images if name not in masks]
    raise UserError(f"{layout.masks}: {len(without)} of {len(images)} images have no mask: "
                    f"{first_few(without)}", fix=fix)


def make_records(layout: Layout, images: Mapping[str, Item], root: Path, classes: Path | None,
                 meaning: Meaning | None = None, separator: str = "auto", join: bool = False,
                 drop_unused: bool = False
                 ) -> tuple[dict[str, Record], list[str], Callable[[Path], np.ndarray]]:
    """Find masks, tags and classes of the images; what was found is printed.

    Classes are those of the list, else of the masks' values or colours, else the names in the
    tags, sorted. Tags that come from masks stay None in the records: workers read them.

    Args:
        layout: where masks and tags are.
        images: by id, at least one.
        root: folder where `classes.txt` may be.
        classes: file of class names to take in place of it.
        meaning: of the masks' values or colours; None: they hold class indices.
        separator, join: see `named_tags`.
        drop_unused: leave classes of no image out; not with masks, whose numbers follow the list.

    Returns:
        Records by id, the classes, and the function that reads a mask.

    Raises:
        UserError: masks, tags or classes are missing, doubled, unreadable or do not fit.
    """
    used = () if layout.masks is None else [layout.masks / name for name in
                                            (LABELMAP, *CLASS_FILES, "colours.csv")]
    masks = find_masks(layout.masks, images, used) if layout.masks else {}
    _need_tags(layout, images, masks)
    names = _listed_classes(layout, root, classes, meaning)
    lines = None
    if layout.tags is not None:
        lines, names = named_tags(tag_lines(layout.tags, images), names, separator, join,
                                  str(layout.tags))
    if drop_unused:
        if masks or lines is None:
            raise UserError("--drop-unused: numbers in masks follow the list of classes",
                            fix="leave it out, or convert without masks")
        names = used_classes(lines, names)
    read = read_index_png if meaning is None else meaning.reader(names)
    probe_masks(list(masks.values()), len(names), read)
    say(f"images: {len(images)}, {len(masks)} of them with mask; tags from "
        f"{layout.tags or layout.masks}")
    records = {key: Record(key, item.path, masks.get(key), None if lines is None else
                           class_indices(lines[key].names, names, lines[key].where),
                           item.path.relative_to(layout.images).as_posix())
               for key, item in images.items()}
    say_unused(records, names)
    return records, names, read


def _listed_classes(layout: Layout, root: Path, classes: Path | None,
                    meaning: Meaning | None) -> list[str]:
    """Classes of a list or of the masks' values or colours; none where tags name them."""
    names, where = read_classes(root, classes, ()), str(class_file(root, classes))
    if not names and meaning is not None:
        names, where = meaning.classes, meaning.where
        check_classes(names, where)
    if names:
        say(f"classes, from {where}: {first_few(names, 25)}")
    elif layout.masks is not None or layout.tags is None:
        raise UserError(f"{layout.masks}: the numbers in masks need the list of classes in their "
                        f"order", fix=f"write it to {root / 'classes.txt'}, one class a line (1 is "
                                      "the first; a first line background does not count), or "
                                      "give --classes")
    return names
