"""The tags of a folder's images: which line is about which image, and which classes there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_tools.class_lists import join_alike, names_in
from data_tools.convert import Record
from data_tools.folder_files import (
    FOLDERS,
    Item,
    by_its_tail,
    composed,
    plain,
    spellings,
)
from more.data.class_files import check_classes
from more.data.tag_files import read_tag_file
from more.data.tags import TagLine, class_indices, special_name, split_cells, tidy
from more.errors import UserError, first_few
from more.progress import say


def tag_lines(source: Path | str, images: Mapping[str, Item]) -> dict[str, TagLine]:
    """Find the line of every image in a tags file; lines about no image are counted and printed.

    Args:
        source: csv or json file, or "folders": the first folder of an image's path is its class.
        images: by id.

    Returns:
        Lines by id.

    Raises:
        UserError: an image without line or folder, one with two lines, and see `read_tag_file`.
    """
    if source == FOLDERS:
        return _folder_lines(images)
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
        say(f"{source}: paths of which the end fits an image: {len(by_tail)} "
            f"({first_few(by_tail, 2)})")
    if strays:
        say(f"{source}: lines about no image: {len(strays)} ({first_few(strays)})")
    if images and not lines:
        first = next(iter(images.values())).name
        raise UserError(f"{source}: no line fits any of the {len(images)} images",
                        fix=f"a line says {next(iter(read), '')!r}, an image is {first!r}: name "
                            "images by their path below the image folder, or by its end")
    without = [name for name in images if name not in lines]
    if without:
        raise UserError(f"{source}: {len(without)} of {len(images)} images have no line: "
                        f"{first_few(without)}", fix="add them; empty tags are allowed")
    return lines


def _folder_lines(images: Mapping[str, Item]) -> dict[str, TagLine]:
    """The first folder of each image's path as its tag."""
    outside = [item.name for item in images.values() if "/" not in item.name]
    if outside:
        raise UserError(f"{len(outside)} of {len(images)} images are in no sub-folder: "
                        f"{first_few(outside)}", fix="move them, or give tags with --tags FILE")
    lines = {name: TagLine(item.name, (tidy(composed(item.name).split("/")[0]),))
             for name, item in images.items()}
    unknown = [line for line in lines.values() if special_name(line.names[0]) == "ignore"]
    if unknown:  # they would count as images without any class
        raise UserError(f"folder {unknown[0].names[0]!r}: the tags of its {len(unknown)} "
                        "images are not known",
                        fix="move it away, or call it background if it shows no class")
    return lines


def named_tags(lines: Mapping[str, TagLine], known: list[str], separator: str, join: bool,
               where: str) -> tuple[dict[str, TagLine], list[str]]:
    """Split the tags of each line, and find the classes.

    Args:
        lines: by id.
        known: classes of a list; without one (empty) the classes are all names in the tags, sorted.
        separator: see `split_cells`.
        join: whether names that differ in case, blanks or underscores alone are one.
        where: the tags' file, for messages.

    Returns:
        Lines by id with the names split, and the classes.

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
    say(f"classes, from the tags: {first_few(names, 25)}")
    return apart, names


def say_unused(records: Mapping[str, Record], names: list[str]) -> None:
    """Print classes that no image has; they stay in the list, which gives classes their numbers."""
    used = {number for record in records.values() for number in record.tags or ()}
    unused = [name for number, name in enumerate(names) if number not in used]
    if unused and all(record.tags is not None for record in records.values()):
        say(f"classes of no image: {len(unused)} ({first_few(unused, 25)}); without masks "
            "--drop-unused leaves them out")


def used_classes(lines: Mapping[str, TagLine], names: list[str]) -> list[str]:
    """The classes that some image has, in their order; the others are printed."""
    used = {number for line in lines.values()
            for number in class_indices(line.names, names, line.where)}
    unused = [name for number, name in enumerate(names) if number not in used]
    if unused:
        say(f"classes of no image, left out: {len(unused)} ({first_few(unused, 25)})")
    kept = [name for number, name in enumerate(names) if number in used]
    check_classes(kept, "the classes that images have")
    return kept
