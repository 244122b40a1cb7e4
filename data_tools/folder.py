"""A folder of own pictures → image shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import check_ids
from data_tools.convert import Record, convert, inputs_digest
from data_tools.folder_files import (
    FOLDERS,
    Item,
    Layout,
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
from data_tools.tags import TagLine, check_classes, class_indices, read_classes, read_tags
from more.data.files import IMAGE_ENDINGS
from more.errors import UserError
from more.progress import Tally


def tag_lines(source: Path | str, images: Mapping[str, Item]) -> dict[str, TagLine]:
    """Class names by id, for every image. Lines about no image are counted and said.

    Args:
        source: csv or json file, or "folders": the first folder of an image's path is its class.
        images: by id.

    Raises:
        UserError: an image without line or folder, one with two lines, and see `read_tags`.
    """
    if source == FOLDERS:
        outside = [item.name for item in images.values() if "/" not in item.name]
        if outside:
            raise UserError(f"{len(outside)} of {len(images)} images are in no sub-folder: "
                            f"{some(outside)}", fix="move them, or give tags with --tags FILE")
        return {name: TagLine(item.name, ["_".join(composed(item.name).split("/")[0].split())])
                for name, item in images.items()}
    names, lines, strays = spellings(images), {}, []
    for text, line in read_tags(source).items():
        image_id = names.get(plain(text))
        if image_id is None:
            strays.append(text)
        elif image_id in lines:
            raise UserError(f"{line.where}: {text!r} is the image of {lines[image_id].where} again",
                            fix="remove one")
        else:
            lines[image_id] = line
    if strays:
        say(f"{source}: lines about no image: {len(strays)} ({some(strays)})")
    without = [name for name in images if name not in lines]
    if without:
        raise UserError(f"{source}: {len(without)} of {len(images)} images have no line: "
                        f"{some(without)}", fix="add them; empty tags are allowed")
    return lines


def choose_classes(root: Path, given: Path | None, masks: Path | None,
                   lines: Mapping[str, TagLine] | None) -> list[str]:
    """`--classes`, else `classes.txt` of the root, else the names in the tags, sorted.

    Raises:
        UserError: masks without a list (their numbers follow its order), or no usable names.
    """
    names = read_classes(root, given, ())
    if names:
        say(f"classes, from {given or root / 'classes.txt'}: {some(names, 25)}")
        return names
    if masks is not None or lines is None:
        raise UserError(f"{masks}: the numbers in masks need the list of classes in their order",
                        fix=f"write it to {root / 'classes.txt'}, one class a line (1 is the "
                            "first; a first line background does not count), or give --classes")
    names = sorted({name for line in lines.values() for name in line.names})
    joined = next((name for name in names if "," in name or ";" in name), None)
    if joined:
        where = next(line.where for line in lines.values() if joined in line.names)
        raise UserError(f"{where}: tag {joined!r}", fix="separate tags by blanks: id,cat dog")
    check_classes(names, "the tags")
    say(f"classes, from the tags: {some(names, 25)}")
    return names


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


def make_records(layout: Layout, images: Mapping[str, Item], root: Path,
                 classes: Path | None) -> tuple[dict[str, Record], list[str]]:
    """A record per image, by id, and the classes; what was found is said.

    Where tags come from masks, they stay None: workers read them.

    Args:
        layout: where masks and tags are.
        images: by id, at least one.
        root: folder where `classes.txt` may be.
        classes: file of class names that goes before it.

    Raises:
        UserError: masks, tags or classes are missing, doubled, unreadable or do not fit.
    """
    masks = find_masks(layout.masks, images) if layout.masks else {}
    _need_tags(layout, images, masks)
    lines = None if layout.tags is None else tag_lines(layout.tags, images)
    names = choose_classes(root, classes, layout.masks, lines)
    probe_masks(list(masks.values()), len(names))
    say(f"images: {len(images)}, {len(masks)} of them with mask; tags from "
        f"{layout.tags or layout.masks}")
    records = {key: Record(key, item.path, masks.get(key), None if lines is None else
                           class_indices(lines[key].names, names, lines[key].where))
               for key, item in images.items()}
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
        help='csv file with the columns id,tags, or json file {"id": ["dog", "sofa"]}')] = None,
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
    layout = find_layout(image_dir, masks, tags, tags_from_folders)
    known = (image_dir / "classes.txt", classes, tags)
    images = list_files(layout.images, IMAGE_ENDINGS, "images", layout.masks, known)
    if not images:
        raise UserError(f"{layout.images}: no image in it", fix=f"bring {' '.join(IMAGE_ENDINGS)}")
    check_ids(images)
    sets = split_ids(images, split, seed) if split else {}
    records, names = make_records(layout, images, image_dir, classes)
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
                  "inputs": {"images": len(records), "sha256": inputs_digest(records)}}
    return convert(out, records, class_names, provenance, read_index_png, **options)


if __name__ == "__main__":
    command(main)
