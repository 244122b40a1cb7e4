"""`python -m data_tools.folder`: a folder of your own pictures → image shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data_tools.build import check_ids
from data_tools.class_lists import CLASS_FILES, check_classes, class_file, read_classes
from data_tools.convert import Record, convert
from data_tools.folder_files import (
    Item,
    Layout,
    find_layout,
    find_masks,
    list_files,
    split_ids,
)
from data_tools.folder_tags import named_tags, say_unused, tag_lines, used_classes
from data_tools.image_checks import probe_masks, read_index_png
from data_tools.mask_meaning import LABELMAP, Meaning, find_meaning
from data_tools.tool import MaskValues, ShardSize, ShareSeed, SkipBad, Workers, command
from more.data.image_files import IMAGE_ENDINGS
from more.data.tags import TAG_SEPARATORS, class_indices
from more.errors import UserError, first_few
from more.progress import Tally, say


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


def main(
    image_dir: Annotated[Path, typer.Argument(
        help="folder of images at any depth, or one that holds images/ and, beside it, "
             "masks/, tags.csv or tags.json, classes.txt")],
    out: Annotated[Path, typer.Argument(metavar="SET", help="shard set to write; with --split "
                                                            "the folder of the sets")],
    masks: Annotated[Path | None, typer.Option(
        help="folder of index masks: PNG files at the same relative paths as the images")] = None,
    mask_values: MaskValues = None,
    colours: Annotated[Path | None, typer.Option(
        help="classes of the colours in the masks, one label:R,G,B a line, as in CVAT's "
             "labelmap.txt, which is found beside the masks by itself")] = None,
    tags: Annotated[Path | None, typer.Option(
        help='csv file with a column id or image and one of tags, or one column of 0 and 1 for '
             'each class; or json file {"id": ["dog", "sofa"]}')] = None,
    tag_separator: Annotated[str, typer.Option(
        help=f"what separates the tags in a cell: {', '.join(TAG_SEPARATORS)}")] = "auto",
    join_names: Annotated[bool, typer.Option(
        "--join-names", help="tags that differ in case, blanks or underscores alone are one "
                             "class")] = False,
    drop_unused: Annotated[bool, typer.Option(
        "--drop-unused", help="leave classes of no image out of the set; not with masks")] = False,
    tags_from_folders: Annotated[bool, typer.Option(
        "--tags-from-folders", help="the first sub-folder of an image is its class")] = False,
    classes: Annotated[Path | None, typer.Option(
        help="class names, one a line; needed with masks, else the names in the tags do")] = None,
    split: Annotated[list[str] | None, typer.Option(
        metavar="NAME=SHARE|LIST",
        help="make SET/NAME of this share (0.8, 4/5) of the images that no list names, or of the "
             "images in a text file; give it once for each set")] = None,
    seed: ShareSeed = 0,
    shard_size: ShardSize = 0,
    workers: Workers = 0,
    skip_bad: SkipBad = False,
) -> int:
    """Convert a folder of your own images to image shards; run it again to resume.

    The id of an image is its path in the folder without ending, with __ for /. Tag files and
    lists may name it by its id or by its path. An image may have no tag, but must have a line.
    Without tags, all images need masks and tags are read from these.

    Example: python -m data_tools.folder photos data/photos --tags tags.csv
    --split train=0.8 --split val=0.2
    """
    if tag_separator not in TAG_SEPARATORS:
        raise UserError(f"--tag-separator {tag_separator}: unknown",
                        fix=f"one of {', '.join(TAG_SEPARATORS)}")
    layout = find_layout(image_dir, masks, tags, tags_from_folders)
    images = _list_images(layout, (*(image_dir / name for name in (*CLASS_FILES, LABELMAP)),
                                   classes, colours, tags))
    sets = split_ids(images, split, seed) if split else {}
    meaning = find_meaning(mask_values, colours, layout.masks is not None,
                           [folder for folder in (layout.masks, image_dir) if folder])
    records, names, read = make_records(layout, images, image_dir, classes, meaning,
                                        tag_separator, join_names, drop_unused)
    parameters = {"tags_from": layout.source, "masks": layout.masks is not None, "classes": names,
                  **({} if meaning is None else meaning.recorded)}
    tally = Tally("images")
    options = {"read_mask": read, "shard_size": shard_size, "workers": workers,
               "skip_bad": skip_bad}
    if not split:
        tally.merge(_write(out, list(records.values()), names, parameters, options))
    for name, (share, ids) in sets.items():
        part = {"name": name, "part": share.recorded, "seed": None if share.ids else seed}
        tally.merge(_write(out / name, [records[image_id] for image_id in ids], names,
                           {**parameters, "split": part}, options))
    tally.print()
    return tally.exit_code


def _list_images(layout: Layout, known: Sequence[Path | None]) -> dict[str, Item]:
    """Images by id; raises UserError when there is none, or an id cannot be a file name."""
    images = list_files(layout.images, IMAGE_ENDINGS, "images", layout.masks, known)
    if not images:
        raise UserError(f"{layout.images}: no image in it",
                        fix=f"bring {' '.join(IMAGE_ENDINGS)}")
    check_ids(images)
    return images


def _write(out: Path, records: list[Record], class_names: list[str], parameters: dict[str, Any],
           options: dict[str, Any]) -> Tally:
    """Write one set."""
    provenance = {"tool": "data_tools.folder", "parameters": parameters,
                  "inputs": {"images": len(records)}}
    return convert(out, records, class_names, provenance, **options)


if __name__ == "__main__":
    command(main)
