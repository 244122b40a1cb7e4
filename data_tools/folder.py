"""`python -m data_tools.folder`: a folder of your own pictures → image shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import check_ids
from data_tools.class_table import show_sets
from data_tools.convert import Record, convert
from data_tools.folder_files import Item, Layout, find_layout, list_files, split_ids
from data_tools.folder_records import make_records
from data_tools.mask_meaning import LABELMAP, find_meaning
from data_tools.tool import MaskValues, ShardSize, ShareSeed, SkipBad, Workers, command
from more.data.class_files import CLASS_FILES
from more.data.image_files import IMAGE_ENDINGS
from more.data.tags import TAG_SEPARATORS
from more.errors import UserError
from more.progress import Tally

ImageDir = Annotated[Path, typer.Argument(
    help="folder of images at any depth, or one that holds images/ and, beside it, "
         "masks/, tags.csv or tags.json, classes.txt")]
Out = Annotated[Path, typer.Argument(
    metavar="SET", help="shard set to write; with --split the folder of the sets")]
Masks = Annotated[Path | None, typer.Option(
    help="folder of index masks: PNG files at the same relative paths as the images")]
Colours = Annotated[Path | None, typer.Option(
    help="classes of the colours in the masks, one label:R,G,B a line, as in CVAT's "
         "labelmap.txt, which is found beside the masks by itself")]
Tags = Annotated[Path | None, typer.Option(
    help='csv file with a column id or image and one of tags, or one column of 0 and 1 for '
         'each class; or json file {"id": ["dog", "sofa"]}')]
TagSeparator = Annotated[str, typer.Option(
    help=f"what separates the tags in a cell: {', '.join(TAG_SEPARATORS)}")]
JoinNames = Annotated[bool, typer.Option(
    "--join-names", help="tags that differ in case, blanks or underscores alone are one class")]
DropUnused = Annotated[bool, typer.Option(
    "--drop-unused", help="leave classes of no image out of the set; not with masks")]
TagsFromFolders = Annotated[bool, typer.Option(
    "--tags-from-folders", help="the first sub-folder of an image is its class")]
Classes = Annotated[Path | None, typer.Option(
    help="class names, one a line; needed with masks, else the names in the tags do")]
Split = Annotated[list[str] | None, typer.Option(
    metavar="NAME=SHARE|LIST",
    help="make SET/NAME of this share (0.8, 4/5) of the images that no list names, or of the "
         "images in a text file; give it once for each set")]


def main(
    image_dir: ImageDir, out: Out, masks: Masks = None, mask_values: MaskValues = None,
    colours: Colours = None, tags: Tags = None, tag_separator: TagSeparator = "auto",
    join_names: JoinNames = False, drop_unused: DropUnused = False,
    tags_from_folders: TagsFromFolders = False, classes: Classes = None, split: Split = None,
    seed: ShareSeed = 0, shard_size: ShardSize = 0, workers: Workers = 0,
    skip_bad: SkipBad = False,
) -> int:
    """Convert a folder of your own images to image shards; run it again to resume.

    The id of an image is its path in the folder without ending, with __ for /. Tag files and
    lists may name it by its id or by its path. An image may have no tag, but must have a line.
    Without tags, all images need masks and tags are read from these.

    Example: python -m data_tools.folder photos data/photos --tags tags.csv
    --split train=0.8 --split val=0.2
    """
    _check_separator(tag_separator)
    layout = find_layout(image_dir, masks, tags, tags_from_folders)
    images = _list_images(layout, (*(image_dir / name for name in (*CLASS_FILES, LABELMAP)),
                                   classes, colours, tags))
    parts = _parts(out, images, split, seed)
    meaning = find_meaning(mask_values, colours, layout.masks is not None,
                           [folder for folder in (layout.masks, image_dir) if folder])
    records, names, read = make_records(layout, images, image_dir, classes, meaning,
                                        tag_separator, join_names, drop_unused)
    parameters = {"tags_from": layout.source, "masks": layout.masks is not None, "classes": names,
                  **({} if meaning is None else meaning.recorded)}
    options = {"read_mask": read, "shard_size": shard_size, "workers": workers,
               "skip_bad": skip_bad}
    tally = _write_all(parts, records, names, parameters, options)
    show_sets({folder.name: folder for folder in parts})
    tally.print()
    return tally.exit_code


def _check_separator(name: str) -> None:
    if name not in TAG_SEPARATORS:
        raise UserError(f"--tag-separator {name}: unknown",
                        fix=f"one of {', '.join(TAG_SEPARATORS)}")


def _parts(out: Path, images: Mapping[str, Item], split: Sequence[str] | None, seed: int
           ) -> dict[Path, tuple[list[str], dict[str, Any]]]:
    """Folders of the sets to write, each with its ids and what its record says of the split."""
    if not split:
        return {out: (list(images), {})}
    return {out / name: (ids, {"split": {"name": name, "part": share.recorded,
                                         "seed": None if share.ids else seed}})
            for name, (share, ids) in split_ids(images, split, seed).items()}


def _list_images(layout: Layout, known: Sequence[Path | None]) -> dict[str, Item]:
    """Images by id; raises UserError when there is none, or an id cannot be a file name."""
    images = list_files(layout.images, IMAGE_ENDINGS, "images", layout.masks, known)
    if not images:
        raise UserError(f"{layout.images}: no image in it",
                        fix=f"bring {' '.join(IMAGE_ENDINGS)}")
    check_ids(images)
    return images


def _write_all(parts: Mapping[Path, tuple[list[str], dict[str, Any]]],
               records: Mapping[str, Record], class_names: list[str],
               parameters: dict[str, Any], options: dict[str, Any]) -> Tally:
    """Write the sets, one after another."""
    tally = Tally("images")
    for folder, (ids, recorded) in parts.items():
        provenance = {"tool": "data_tools.folder", "parameters": {**parameters, **recorded},
                      "inputs": {"images": len(ids)}}
        tally.merge(convert(folder, [records[image_id] for image_id in ids], class_names,
                            provenance, **options))
    return tally


if __name__ == "__main__":
    command(main)
