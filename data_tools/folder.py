"""A folder of own pictures → image shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import check_ids
from data_tools.convert import Record, convert
from data_tools.folder_files import (
    FOLDERS,
    Item,
    Layout,
    by_its_tail,
    composed,
    find_layout,
    find_masks,
    list_files,
    plain,
    say,
    some,
    spellings,
    split_ids,
)
from data_tools.images import probe_masks, read_index_png
from data_tools.pool import command
from data_tools.tags import CLASS_FILES, class_file, join_alike, names_in, read_classes
from more.data.files import IMAGE_ENDINGS
from more.data.tag_files import read_tag_file
from more.data.tags import TAG_SEPARATORS, TagLine, class_indices, split_cells, tidy
from more.errors import UserError
from more.progress import Tally


def tag_lines(source: Path | str, images: Mapping[str, Item]) -> dict[str, TagLine]:
    """Class names by id, for every image. Lines about no image are counted and said.

    Args:
        source: csv or json file, or "folders": the first folder of an image's path is its class.
        images: by id.

    Raises:
        UserError: an image without line or folder, one with two lines, and see `read_tag_file`.
    """
    if source == FOLDERS:
        outside = [item.name for item in images.values() if "/" not in item.name]
        if outside:
            raise UserError(f"{len(outside)} of {len(images)} images are in no sub-folder: "
                            f"{some(outside)}", fix="move them, or give tags with --tags FILE")
        return {name: TagLine(item.name, (tidy(composed(item.name).split("/")[0]),))
                for name, item in images.items()}
    names, lines, strays, by_tail = spellings(images), {}, [], []
    read, found = read_tag_file(source)
    say(f"{source}: {len(read)} lines" + (f", {found}" if found else ""))
    for text, line in read.items():
        image_id = names.get(plain(text))
        if image_id is None and (image_id := by_its_tail(text, names)) is not None:
            by_tail.append(text)
        if image_id is None:
            strays.append(text)
        elif image_id in lines:
            raise UserError(f"{line.where}: {text!r} is the image of {lines[image_id].where} again",
                            fix="remove one")
        else:
            lines[image_id] = line
    if by_tail:
        say(f"{source}: paths of which the end fits an image: {len(by_tail)} ({some(by_tail, 2)})")
    if strays:
        say(f"{source}: lines about no image: {len(strays)} ({some(strays)})")
    if images and not lines:
        first = next(iter(images.values())).name
        raise UserError(f"{source}: no line fits any of the {len(images)} images",
                        fix=f"a line says {next(iter(read), '')!r}, an image is {first!r}: name "
                            "images by their path below the image folder, or by its end")
    without = [name for name in images if name not in lines]
    if without:
        raise UserError(f"{source}: {len(without)} of {len(images)} images have no line: "
                        f"{some(without)}", fix="add them; empty tags are allowed")
    return lines


def named_tags(lines: Mapping[str, TagLine], known: list[str], separator: str, join: bool,
               where: str) -> tuple[dict[str, TagLine], list[str]]:
    """Take the tags of each line apart, and find the classes.

    Args:
        lines: by id.
        known: classes of a list; empty without one: all names in the tags, sorted.
        separator: see `split_cells`.
        join: whether names that differ in case, blanks or underscores alone are one.
        where: the tags' file, for messages.

    Raises:
        UserError: see `split_cells` and `check_classes`.
    """
    apart, how = split_cells(lines, known or None, separator)
    if how:
        say(f"{where}: {how}")
    apart = join_alike(apart, known) if join else apart
    if known:
        return apart, known
    names = names_in(apart, where)
    say(f"classes, from the tags: {some(names, 25)}")
    return apart, names


def say_unused(records: Mapping[str, Record], names: list[str]) -> None:
    """Name classes that no image has: they stay in the list, which gives them their numbers."""
    used = {number for record in records.values() for number in record.tags or ()}
    unused = [name for number, name in enumerate(names) if number not in used]
    if unused and all(record.tags is not None for record in records.values()):
        say(f"classes of no image: {len(unused)} ({some(unused, 25)})")


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
                    f"{some(without)}", fix=fix)


def make_records(layout: Layout, images: Mapping[str, Item], root: Path, classes: Path | None,
                 separator: str = "auto",
                 join: bool = False) -> tuple[dict[str, Record], list[str]]:
    """A record per image, by id, and the classes; what was found is said.

    Where tags come from masks, they stay None: workers read them.

    Args:
        layout: where masks and tags are.
        images: by id, at least one.
        root: folder where `classes.txt` may be.
        classes: file of class names that goes before it.
        separator, join: see `named_tags`.

    Raises:
        UserError: masks, tags or classes are missing, doubled, unreadable or do not fit.
    """
    masks = find_masks(layout.masks, images) if layout.masks else {}
    _need_tags(layout, images, masks)
    names = read_classes(root, classes, ())
    if names:
        say(f"classes, from {class_file(root, classes)}: {some(names, 25)}")
    elif masks or layout.tags is None:
        raise UserError(f"{layout.masks}: the numbers in masks need the list of classes in their "
                        f"order", fix=f"write it to {root / 'classes.txt'}, one class a line (1 is "
                                      "the first; a first line background does not count), or "
                                      "give --classes")
    lines = None
    if layout.tags is not None:
        lines, names = named_tags(tag_lines(layout.tags, images), names, separator, join,
                                  str(layout.tags))
    probe_masks(list(masks.values()), len(names))
    say(f"images: {len(images)}, {len(masks)} of them with mask; tags from "
        f"{layout.tags or layout.masks}")
    records = {key: Record(key, item.path, masks.get(key), None if lines is None else
                           class_indices(lines[key].names, names, lines[key].where))
               for key, item in images.items()}
    say_unused(records, names)
    return records, names


def main(
    image_dir: Annotated[Path, typer.Argument(
        help="folder of images at any depth, or one that holds images/ and, beside it, "
             "masks/, tags.csv or tags.json, classes.txt")],
    out: Annotated[Path, typer.Argument(metavar="SET", help="shard set to write; with --split "
                                                            "the folder of the sets")],
    masks: Annotated[Path | None, typer.Option(
        help="folder of index masks: PNG files at the same relative paths as the images")] = None,
    tags: Annotated[Path | None, typer.Option(
        help='csv file with a column id or image and one of tags, or one column of 0 and 1 for '
             'each class; or json file {"id": ["dog", "sofa"]}')] = None,
    tag_separator: Annotated[str, typer.Option(
        help=f"what separates the tags in a cell: {', '.join(TAG_SEPARATORS)}")] = "auto",
    join_names: Annotated[bool, typer.Option(
        "--join-names", help="tags that differ in case, blanks or underscores alone are one "
                             "class")] = False,
    tags_from_folders: Annotated[bool, typer.Option(
        "--tags-from-folders", help="the first sub-folder of an image is its class")] = False,
    classes: Annotated[Path | None, typer.Option(
        help="class names, one a line; needed with masks, else the names in the tags do")] = None,
    split: Annotated[list[str] | None, typer.Option(
        metavar="NAME=SHARE|LIST",
        help="make SET/NAME of this share (0.8, 4/5) of the images that no list names, or of the "
             "images in a text file; give it once for each set")] = None,
    seed: Annotated[int, typer.Option(
        min=0, max=2**32 - 1, help="another seed, other images in the shares")] = 0,
    shard_size: Annotated[int, typer.Option(
        min=0, help="images per shard; 0 = by set size")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = all cores")] = 0,
    skip_bad: Annotated[bool, typer.Option(help="leave unreadable images out")] = False,
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
    known = (*(image_dir / name for name in CLASS_FILES), classes, tags)
    images = list_files(layout.images, IMAGE_ENDINGS, "images", layout.masks, known)
    if not images:
        raise UserError(f"{layout.images}: no image in it", fix=f"bring {' '.join(IMAGE_ENDINGS)}")
    check_ids(images)
    sets = split_ids(images, split, seed) if split else {}
    records, names = make_records(layout, images, image_dir, classes, tag_separator,
                                  join_names)
    parameters = {"tags_from": layout.source, "masks": layout.masks is not None, "classes": names}
    tally = Tally("images")
    options = {"shard_size": shard_size, "workers": workers, "skip_bad": skip_bad}
    if not split:
        tally.merge(_write(out, list(records.values()), names, parameters, options))
    for name, (share, ids) in sets.items():
        part = {"name": name, "part": share.recorded, "seed": None if share.ids else seed}
        tally.merge(_write(out / name, [records[image_id] for image_id in ids], names,
                           {**parameters, "split": part}, options))
    tally.print()
    return tally.exit_code


def _write(out: Path, records: list[Record], class_names: list[str], parameters: dict[str, Any],
           options: dict[str, Any]) -> Tally:
    """Write one set."""
    provenance = {"tool": "data_tools.folder", "parameters": parameters,
                  "inputs": {"images": len(records)}}
    return convert(out, records, class_names, provenance, read_index_png, **options)


if __name__ == "__main__":
    command(main)
