"""PASCAL VOC layout → image shards."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data_tools.build import check_ids
from data_tools.convert import Record, convert, inputs_digest
from data_tools.images import check_values, read_index_png
from data_tools.pool import command
from data_tools.tags import class_indices, read_classes, read_text, tags_from_csv
from more.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor")
TAG_SOURCES = ("auto", "masks", "xml", "csv")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_PROBES = 40  # masks looked at before the work starts


def read_split(root: Path, split: str) -> list[str]:
    """Image ids of `ImageSets/Segmentation/SPLIT.txt`; a line may also be a path to an image.

    Raises:
        UserError: no such root, folder or list (names the lists that exist), or an empty list.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", fix="give the folder that holds JPEGImages")
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder}: no such folder", fix="give a folder in VOC layout")
    lists = root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise UserError(f"{path}: no such list", fix=f"--split NAME, lists there: {known}")
    first = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    if not first:
        raise UserError(f"{path}: the list is empty", fix="give another split")
    return [Path(word).stem if "/" in word or word.lower().endswith(_IMAGE_ENDINGS) else word
            for word in first]


def find_files(root: Path, ids: Sequence[str], masks: str) -> list[Record]:
    """Image file and, where there is one, mask file of every id; tags still unknown.

    Raises:
        UserError: an image is missing.
    """
    images = {path.name: path for path in (root / "JPEGImages").iterdir()}
    folder = root / masks
    mask_files = {path.stem: path for path in folder.glob("*.png")} if folder.is_dir() else {}
    records, missing = [], []
    for image_id in ids:
        found = [images[image_id + end] for end in _IMAGE_ENDINGS if image_id + end in images]
        if found:
            records.append(Record(image_id, found[0], mask_files.get(image_id)))
        else:
            missing.append(image_id)
    if missing:
        raise UserError(f"{root / 'JPEGImages'}: {len(missing)} of {len(ids)} images of the list "
                        f"are missing: {', '.join(missing[:5])}",
                        fix="complete the folder or shorten the list")
    return records


def tags_from_xml(root: Path, image_id: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes of the objects in `Annotations/ID.xml`, difficult ones included."""
    path = root / "Annotations" / f"{image_id}.xml"
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: unreadable annotation ({error})",
                        fix="complete Annotations, or take --tags FILE.csv") from error
    names = [(node.findtext("name") or "").strip() for node in tree.iter("object")]
    return class_indices(names, class_names, str(path))


def choose_source(root: Path, source: str, csv_file: Path | None, records: list[Record]) -> str:
    """What "auto" means here: the csv when given, else masks, else Annotations.

    Raises:
        UserError: nothing to take tags from, or a source without its files.
    """
    if source not in TAG_SOURCES:
        raise UserError(f"--tags-from {source}: unknown", fix=f"one of {', '.join(TAG_SOURCES)}")
    if source == "csv" and csv_file is None:
        raise UserError("--tags-from csv needs the file", fix="add --tags FILE.csv")
    if source != "auto":
        return source
    if csv_file is not None:
        return "csv"
    if all(record.mask for record in records) or not (root / "Annotations").is_dir():
        return "masks"
    return "xml"


def add_tags(root: Path, records: list[Record], class_names: list[str], source: str,
             csv_file: Path | None, masks: str) -> list[Record]:
    """Fill in the tags from `source`; for "masks" they stay None, workers read them.

    Raises:
        UserError: an image without mask, without csv line or without annotation.
    """
    if source == "masks":
        without = [record.id for record in records if record.mask is None]
        if without:
            others = [path.name for path in sorted(root.glob("SegmentationClass*"))
                      if path.name != masks]
            raise UserError(
                f"{root / masks}: {len(without)} of {len(records)} images have no mask: "
                f"{', '.join(without[:5])}",
                fix="take tags from elsewhere (--tags FILE.csv or --tags-from xml)"
                    + (f", or masks from --masks {others[0]}" if others else ""))
        return records
    if source == "xml":
        return [Record(r.id, r.image, r.mask, tags_from_xml(root, r.id, class_names))
                for r in records]
    tags = tags_from_csv(csv_file, class_names) if csv_file else {}
    without = [record.id for record in records if record.id not in tags]
    if without:
        raise UserError(f"{csv_file}: {len(without)} of {len(records)} images have no line: "
                        f"{', '.join(without[:5])}", fix="add them; empty tags are allowed")
    return [Record(r.id, r.image, r.mask, tags[r.id]) for r in records]


def probe_masks(records: Sequence[Record], num_classes: int) -> None:
    """Look at some masks, evenly spread, so that a wrong list of classes shows at once."""
    with_mask = [record.mask for record in records if record.mask is not None]
    for path in with_mask[::max(len(with_mask) // _PROBES, 1)]:
        check_values(read_index_png(path), num_classes, path)


def main(
    voc_root: Annotated[Path, typer.Argument(help="folder with JPEGImages, ImageSets, …")],
    out: Annotated[Path, typer.Argument(metavar="SET", help="shard set to write")],
    split: Annotated[str, typer.Option(help="list in ImageSets/Segmentation, without .txt")],
    tags: Annotated[Path | None, typer.Option(help="csv file with the columns id,tags")] = None,
    tags_from: Annotated[str, typer.Option(help="auto, masks, xml or csv")] = "auto",
    classes: Annotated[Path | None, typer.Option(help="class names, one a line")] = None,
    masks: Annotated[str, typer.Option(help="folder of index masks")] = "SegmentationClass",
    shard_size: Annotated[int, typer.Option(
        min=0, help="images per shard; 0 = by set size")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = all cores")] = 0,
    skip_bad: Annotated[bool, typer.Option(help="leave unreadable images out")] = False,
) -> int:
    """Convert a folder in VOC layout to image shards; run it again to resume.

    Example: python -m data_tools.voc VOCdevkit/VOC2012 data/voc_train_aug --split train_aug
    """
    ids = read_split(voc_root, split)
    class_names = read_classes(voc_root, classes, VOC_CLASSES)
    records = find_files(voc_root, ids, masks)
    source = choose_source(voc_root, tags_from, tags, records)
    records = add_tags(voc_root, records, class_names, source, tags, masks)
    check_ids(record.id for record in records)
    probe_masks(records, len(class_names))
    provenance = {"tool": "data_tools.voc",
                  "parameters": {"split": split, "tags_from": source, "masks": masks,
                                 "classes": class_names},
                  "inputs": {"images": len(records), "sha256": inputs_digest(records)}}
    tally = convert(out, records, class_names, provenance, read_index_png,
                    shard_size=shard_size, workers=workers, skip_bad=skip_bad)
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
