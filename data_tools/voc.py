"""`python -m data_tools.voc`: a folder in PASCAL VOC layout → image shards."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from data_tools.build import check_ids
from data_tools.class_lists import tags_from_file
from data_tools.class_table import show_sets
from data_tools.convert import Record, convert
from data_tools.folder_files import by_its_tail
from data_tools.image_checks import probe_masks
from data_tools.mask_meaning import Meaning, find_meaning
from data_tools.tool import MaskValues, ShardSize, SkipBad, Workers, command
from data_tools.voc_files import (
    AUTO,
    MixedMaskReader,
    find_files,
    find_root,
    find_sbd,
    mask_places,
    read_mask,
)
from data_tools.voc_lists import choose_split, list_images, read_split
from more.data.class_files import check_classes, read_classes
from more.data.tags import VOC_CLASSES, class_indices
from more.errors import UserError, first_few
from more.progress import say

TAG_SOURCES = (AUTO, "masks", "xml", "csv", "none")
TEST = "test"


def annotation(root: Path, image_id: str) -> Path:
    """VOC's XML file about an image."""
    return root / "Annotations" / f"{image_id}.xml"


def tags_from_xml(root: Path, image_id: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Tags of an image by the objects in its annotation, difficult ones included.

    Args:
        root: folder in VOC layout.
        image_id: the image.
        class_names: all classes in order.

    Returns:
        Sorted class indices from 0.

    Raises:
        UserError: no readable annotation, or an unknown class.
    """
    path = annotation(root, image_id)
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: unreadable annotation ({error})",
                        fix="complete Annotations, or take --tags FILE.csv, --tags-from masks or "
                            "--tags-from none (all zero)") from error
    names = [(node.findtext("name") or "").strip() for node in tree.iter("object")]
    return class_indices(names, class_names, str(path))


def choose_classes(root: Path, given: Path | None, meaning: Meaning | None,
                   records: Sequence[Record]) -> list[str]:
    """Find the list of classes.

    The first of these that is there: the file of `--classes`, `classes.txt`, labelme's
    `class_names.txt`, the names that values or colours of masks mean, the names in annotations (if
    there is no mask), VOC's classes.

    Args:
        root: folder in VOC layout.
        given: file of `--classes`.
        meaning: of the masks' values or colours.
        records: of the images.

    Returns:
        The classes in order.

    Raises:
        UserError: no usable names.
    """
    labelme = root / "class_names.txt"
    if given is None and not (root / "classes.txt").is_file() and labelme.is_file():
        given = labelme
    names, where = read_classes(root, given, ()), given or root / "classes.txt"
    if not names and meaning is not None:
        names, where = meaning.classes, meaning.where
        check_classes(names, meaning.where)
    if not names:
        shown = set() if any(record.mask for record in records) else _annotated(root, records)
        strange = shown - set(VOC_CLASSES)
        names = sorted(shown) if strange else list(VOC_CLASSES)
        where = root / "Annotations" if strange else "VOC (no list of classes there)"
    say(f"classes, from {where}: {first_few(names, 25)}")
    return names


def _annotated(root: Path, records: Sequence[Record]) -> set[str]:
    """Names in all readable annotations; unreadable ones matter only if tags come from them."""
    names: set[str] = set()
    for record in records:
        with suppress(OSError, ElementTree.ParseError):
            tree = ElementTree.parse(annotation(root, record.id))
            names.update((node.findtext("name") or "").strip() for node in tree.iter("object"))
    return names - {""}


def choose_source(root: Path, split: str | None, source: str, csv_file: Path | None,
                  records: list[Record]) -> str:
    """Where tags come from; "auto" is the csv if given, else masks, else annotations.

    Only the split `test` may have no tags: VOC publishes neither masks nor objects of its images.

    Args:
        root: folder in VOC layout.
        split: name of the list, or None.
        source: one of `TAG_SOURCES`.
        csv_file: file of `--tags`.
        records: of the images.

    Returns:
        "masks", "xml", "csv" or "none".

    Raises:
        UserError: an unknown source, or one without its file.
    """
    if source not in TAG_SOURCES:
        raise UserError(f"--tags-from {source}: unknown", fix=f"one of {', '.join(TAG_SOURCES)}")
    if source == "csv" and csv_file is None:
        raise UserError("--tags-from csv needs the file", fix="add --tags FILE.csv")
    if source != AUTO:
        return source
    if csv_file is not None:
        return "csv"
    if all(record.mask for record in records):
        return "masks"
    if split == TEST and not all(annotation(root, r.id).is_file() for r in records):
        say("tags: none, all zero (the split test has neither masks nor annotations)")
        return "none"
    return "xml" if (root / "Annotations").is_dir() else "masks"


def add_tags(root: Path, records: list[Record], class_names: list[str], source: str,
             csv_file: Path | None, masks: str) -> list[Record]:
    """Fill in the tags; from masks they stay None, since workers read them.

    Args:
        root: folder in VOC layout.
        records: of the images.
        class_names: all classes in order.
        source: "masks", "xml", "csv" or "none".
        csv_file: file of `--tags`.
        masks: folder of `--masks`.

    Returns:
        The records with tags.

    Raises:
        UserError: an image without mask, without csv line or without annotation.
    """
    if source == "masks":
        without = [record.id for record in records if record.mask is None]
        if without:
            raise UserError(
                f"{root if masks == AUTO else root / masks}: {len(without)} of {len(records)} "
                f"images have no mask: {first_few(without)}",
                fix="take tags from elsewhere (--tags FILE.csv, --tags-from xml, or "
                    f"--tags-from none for all zero), or masks from {_other_masks(root, masks)}")
        return records
    if source == "none":
        return [replace(record, tags=()) for record in records]
    if source == "xml":
        return [replace(record, tags=tags_from_xml(root, record.id, class_names))
                for record in records]
    return _csv_tags(records, class_names, csv_file)


def _csv_tags(records: list[Record], class_names: list[str],
              csv_file: Path | None) -> list[Record]:
    """The records with tags from the lines of a tags file."""
    names = {name: record.id for record in records for name in (record.image.name, record.id)}
    tags: dict[str, tuple[int, ...]] = {}
    for text, found in (tags_from_file(csv_file, class_names) if csv_file else {}).items():
        image_id = by_its_tail(text, names)
        if image_id in tags:
            raise UserError(f"{csv_file}: two lines are about the image {image_id}",
                            fix="remove one")
        if image_id is not None:
            tags[image_id] = found
    without = [record.id for record in records if record.id not in tags]
    if without:
        raise UserError(f"{csv_file}: {len(without)} of {len(records)} images have no line: "
                        f"{first_few(without)}", fix="add them; empty tags are allowed")
    return [replace(record, tags=tags[record.id]) for record in records]


def _other_masks(root: Path, masks: str) -> str:
    """Where else masks may be, for an error's remedy."""
    if masks == AUTO:
        return "SBD (--sbd FOLDER)"
    others = [path.name for path in sorted(root.glob("SegmentationClass*")) if path.name != masks]
    return f"--masks {others[0] if others else AUTO}"


def _say_masks(used: dict[str, int], images: int) -> None:
    parts = [f"{count} from {name}" for name, count in used.items() if count]
    rest = images - sum(used.values())
    if rest:
        parts.append(f"{rest} images without")
    say(f"masks: {', '.join(parts)}")


def _mask_reader(records: Sequence[Record], class_names: list[str],
                 meaning: Meaning | None) -> Callable[[Path], np.ndarray]:
    """What reads the masks; some of them are read now to find a wrong list of classes."""
    read = read_mask if meaning is None else MixedMaskReader(meaning.reader(class_names))
    # Masks of SBD to the front: a missing package shows at once, too.
    found = sorted((r.mask for r in records if r.mask), key=lambda path: path.suffix != ".mat")
    probe_masks(found, len(class_names), read)
    return read


def main(
    voc_root: Annotated[Path, typer.Argument(help="folder with JPEGImages, ImageSets, …, or "
                                                  "VOCdevkit, or the folder that holds it")],
    out: Annotated[Path, typer.Argument(metavar="SET", help="shard set to write")],
    split: Annotated[str | None, typer.Option(
        help="list in ImageSets/Segmentation without .txt: train, val, trainval, test, train_aug, "
             "or your own; may be left out where there is one list or none (all images)")] = None,
    tags: Annotated[Path | None, typer.Option(
        help="file of tags, as data_tools.folder takes")] = None,
    tags_from: Annotated[str, typer.Option(
        help="auto, masks, xml, csv, or none (all zero)")] = AUTO,
    classes: Annotated[Path | None, typer.Option(help="class names, one a line")] = None,
    mask_values: MaskValues = None,
    colours: Annotated[Path | None, typer.Option(
        help="classes of the colours in the masks, one label:R,G,B a line; CVAT's labelmap.txt "
             "in VOC_ROOT is taken by itself")] = None,
    masks: Annotated[str, typer.Option(
        help="folder of index masks; auto = per image SegmentationClass, then "
             "SegmentationClassAug, then SBD")] = AUTO,
    sbd: Annotated[Path | None, typer.Option(
        help="the SBD release: its masks, and the list train_aug if VOC_ROOT has none")] = None,
    shard_size: ShardSize = 0,
    workers: Workers = 0,
    skip_bad: SkipBad = False,
) -> int:
    """Convert a folder in VOC layout to image shards; run it again to resume.

    The 10,582 images of train_aug need SBD: unpack its release and name it with --sbd. Exports of
    CVAT ("Segmentation mask"), labelme (labelme2voc) and Label Studio (Pascal VOC) are taken as
    they are.

    Example: python -m data_tools.voc VOCdevkit data/voc_train_aug --split train_aug
    --sbd benchmark_RELEASE
    """
    root, release = find_root(voc_root), find_sbd(sbd) if sbd else None
    split, images = choose_split(root, split), list_images(root, release)
    ids = list(images) if split is None else read_split(root, split, release, images)
    records, used = find_files(root, ids, mask_places(root, masks, release), images)
    meaning = find_meaning(mask_values, colours, any(used.values()), [root])
    class_names = choose_classes(root, classes, meaning, records)
    source = choose_source(root, split, tags_from, tags, records)
    records = add_tags(root, records, class_names, source, tags, masks)
    check_ids(record.id for record in records)
    _say_masks(used, len(records))
    read = _mask_reader(records, class_names, meaning)
    provenance = {"tool": "data_tools.voc",
                  "parameters": {"split": split, "tags_from": source, "masks": masks,
                                 "masks_from": used, "classes": class_names,
                                 **({} if meaning is None else meaning.recorded)},
                  "inputs": {"images": len(records)}}
    tally = convert(out, records, class_names, provenance, read,
                    shard_size=shard_size, workers=workers, skip_bad=skip_bad)
    show_sets({out.name: out})
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
