"""`python -m data_tools.coco`: COCO annotations and their images → image shards.

Taken are instances_*.json and image folders in the layout of 2014 or 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import check_ids, sole_writer
from data_tools.class_table import show_sets
from data_tools.coco_categories import Classes, final_classes, first_classes
from data_tools.coco_checks import check_counts, check_missing, class_notes, region_notes
from data_tools.coco_files import (
    ImageFolder,
    bare_name,
    choose,
    locate,
    read_list,
    renamed,
    with_sizes,
)
from data_tools.coco_index import Counts, Options, annotation_database, index_annotations, renumber
from data_tools.coco_json import PASSES, InstancesFile, megabytes
from data_tools.coco_masks import MaskSource, read_mask
from data_tools.coco_names import CocoImage, equal_names
from data_tools.convert import Record, convert
from data_tools.source_files import unchanged
from data_tools.tool import ShardSize, Workers, command
from more import __version__
from more.data.shards.format import MANIFEST, sha256_bytes, sha256_file
from more.data.shards.manifest import Manifest, finished_shards, read_manifest
from more.errors import UserError
from more.progress import Tally, say, track

REPORT = {  # counts in the manifest's extra["report"], and how they are printed
    "images": "images",
    "annotations": "annotations",
    "crowd_regions": "crowd regions",
    "joined_categories": "categories joined with one of the same name",
    "categories_left_out": "categories that are no class",
    "background": "annotations of background (left out)",
    "ignored": "annotations of an ignored category (255, no tag)",
    "empty_segmentations": "annotations without segmentation (tag only)",
    "small_polygons": "polygons of fewer than 3 points (not drawn)",
    "odd_polygons": "polygons with NaN or Infinity (not drawn)",
    "odd_numbers": "numbers NaN or Infinity in the file (taken as missing)",
    "flat_lists": "polygons written as a plain list of numbers",
    "no_pixel": "polygons or run lengths that draw no pixel",
    "unknown_category": "annotations of an unknown category (left out)",
    "other_types": "annotations whose image_id has another type than the images' ids (matched "
                   "by value)",
    "unlisted_images": "annotations of images that the file does not list (ignored)",
    "other_images": "annotations of images that are not converted",
    "equal_names": "images of equal file names (ids from their paths)",
    "other_spelling": "images found under another path or spelling than file_name",
    "sizes_read": "images whose height and width were read from the file",
    "missing_files": "images without a file (left out)",
    "without_tags": "images without a tag",
    "dropped": "images without a tag that were left out (--drop-untagged)",
}
ALWAYS = ("images", "annotations", "crowd_regions", "without_tags")  # printed also if 0


@dataclass(frozen=True)
class Choices:
    """Options of `main` that decide what the set holds."""

    drop_untagged: bool = False
    masks: bool = True
    skip_bad: bool = False
    draw_crowds: bool = False
    drop_unused: bool = False
    join_alike: bool = False

    @property
    def parameters(self) -> dict[str, bool]:
        """What provenance records; newer options only if set, as earlier versions lack them."""
        newer = {name: True for name in ("draw_crowds", "drop_unused", "join_alike")
                 if getattr(self, name)}
        return {"drop_untagged": self.drop_untagged, "masks": self.masks, **newer}


@dataclass(frozen=True)
class Work:
    """What the files say: classes, images to convert, counts for the report, missing images."""

    classes: Classes
    records: list[Record]
    report: dict[str, int]
    missing: list[CocoImage]
    notes: list[str]

    @property
    def extra(self) -> dict[str, Any]:
        """What the manifest keeps beside the usual."""
        return {**self.classes.extra, "report": self.report, "notes": self.notes,
                "missing_files": [image.file_name for image in self.missing]}


def read_work(instances: Path, folder: ImageFolder, names: Sequence[str] | None,
              list_file: Path | None, database: Path | None, choices: Choices) -> Work:
    """Read the annotations and find the images, so that errors show before anything is written.

    Args:
        instances: the JSON file.
        folder: where the images are.
        names: images to convert, from `list_file`; None for all.
        list_file: for messages.
        database: made for the workers; None when no masks are wanted.
        choices: see `main`.

    Returns:
        What is to be converted.

    Raises:
        UserError: the file is no complete instances file, images or categories are missing.
    """
    with track(PASSES * megabytes(instances), f"reading {instances.name}", "MB") as bar:
        source = InstancesFile(instances, bar)
        first = first_classes(source.categories(), choices.join_alike)
        images = source.images()
        wanted = images if names is None else choose(images, names, list_file)
        check_ids(image.name for image in wanted)
        chosen, files, missing = locate(wanted, folder)
        check_missing(missing, wanted, folder, choices.skip_bad)
        chosen, sizes_read = with_sizes(chosen, files)
        options = Options(database, choices.draw_crowds,
                          [(image.height, image.width) for image in chosen])
        counts, tags = index_annotations(
            source, options, {image.id: number for number, image in enumerate(chosen)},
            {image.id for image in images}, first.labels)
    check_counts(counts, instances, images, masks=database is not None, skip_bad=choices.skip_bad)
    classes, renumbered = final_classes(first, counts.owned, instances, choices.drop_unused)
    if database and any(old != new for old, new in renumbered.items()):
        renumber(database, renumbered)
    tags = [{renumbered[label] for label in present} for present in tags]
    records = _records(chosen, files, tags, folder, database, choices.drop_untagged)
    report = {**_report(counts, classes, tags, len(records)), "missing_files": len(missing),
              "odd_numbers": source.odd_numbers, "equal_names": equal_names(chosen),
              "other_spelling": renamed(chosen, files), "sizes_read": sizes_read}
    notes = [*class_notes(classes), *region_notes(counts, choices.draw_crowds)]
    return Work(classes, records, {key: report[key] for key in REPORT}, missing, notes)


def _report(counts: Counts, classes: Classes, tags: Sequence[set[int]],
            records: int) -> dict[str, int]:
    """What the report counts of annotations and classes."""
    return {**asdict(counts), "images": records, "without_tags": sum(not row for row in tags),
            "dropped": len(tags) - records, "joined_categories": len(classes.joined),
            "categories_left_out": len(classes.left_out)}


def _records(images: Sequence[CocoImage], files: Sequence[Path], tags: Sequence[set[int]],
             folder: ImageFolder, database: Path | None, drop_untagged: bool) -> list[Record]:
    records = []
    for number, (image, file) in enumerate(zip(images, files, strict=True)):
        if tags[number] or not drop_untagged:
            mask = database and MaskSource(database, number, image.file_name, image.height,
                                           image.width)
            records.append(Record(image.name, file, mask,
                                  tuple(label - 1 for label in sorted(tags[number])),
                                  folder.name_of(file)))
    return records


def finished(out: Path, asked: dict[str, Any], folder: ImageFolder) -> Manifest | None:
    """Whether the set is complete already, so that the annotations need not be read.

    Args:
        out: folder of the set.
        asked: the part of its provenance that is known before the annotations are read.
        folder: where the images are; one that was missing then may be there now.

    Returns:
        The manifest of a complete set, else None.

    Raises:
        UserError: `out` was made otherwise.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    entries = finished_shards(out, {**manifest.provenance, **asked})
    whole = all(entries.get(entry.file) == entry for entry in manifest.shards)
    found = any(folder.find(name) for name in manifest.extra["missing_files"])
    same = unchanged(out, manifest.provenance, folder.root)
    return manifest if whole and same and not found else None


def convert_coco(instances: Path, folder: ImageFolder, out: Path, list_file: Path | None,
                 choices: Choices, *, shard_size: int, workers: int) \
        -> tuple[dict[str, int], list[str], Tally]:
    """Write the set; see `main` for the arguments.

    Returns:
        The report, notes for the user, and counts of images.
    """
    megabytes(instances)
    names = None if list_file is None else read_list(list_file)
    with sole_writer(out), annotation_database(out) as database:
        listed = names and sha256_bytes("\n".join(map(bare_name, names)).encode())
        provenance = {"tool": "data_tools.coco",
                      "parameters": {**choices.parameters, "list": listed},
                      "inputs": {"instances": sha256_file(instances)}}
        asked = {**provenance, "version": __version__, "skip_bad": choices.skip_bad,
                 **({"shard_size": shard_size} if shard_size else {})}
        if (manifest := finished(out, asked, folder)) is not None:
            tally = Tally("images", skipped=manifest.rows + len(manifest.extra["left_out"]))
            return manifest.extra["report"], manifest.extra.get("notes", []), tally
        work = read_work(instances, folder, names, list_file,
                         database if choices.masks else None, choices)
        ids = [record.id for record in work.records]
        provenance["rows"] = {"images": len(ids), "sha256": sha256_bytes("\n".join(ids).encode())}
        tally = convert(out, work.records, [category.name for category in work.classes.kept],
                        provenance, read_mask, shard_size=shard_size, workers=workers,
                        skip_bad=choices.skip_bad, extra=work.extra,
                        left_out=[image.name for image in work.missing])
        tally.skip(len(work.missing))
    return work.report, work.notes, tally


def main(
    instances: Annotated[Path, typer.Argument(metavar="INSTANCES.json", help="annotations")],
    image_dir: Annotated[Path, typer.Argument(
        help="folder of the images, or the parent of train2014, val2017, …")],
    out: Annotated[Path, typer.Argument(metavar="SET", help="shard set to write")],
    list_file: Annotated[Path | None, typer.Option(
        "--list", help="text file, one image name a line; without: all images")] = None,
    drop_untagged: Annotated[bool, typer.Option(
        "--drop-untagged", help="leave out images that show none of the classes")] = False,
    masks: Annotated[bool, typer.Option(help="draw masks from the segmentations")] = True,
    shard_size: ShardSize = 0,
    workers: Workers = 0,
    skip_bad: Annotated[bool, typer.Option(
        "--skip-bad", help="leave out unreadable and missing images, unknown categories")] = False,
    crowds: Annotated[str, typer.Option(
        help="ignore: crowd regions are 255; draw: like other regions (CVAT writes every mask "
             "as a crowd)")] = "ignore",
    drop_unused: Annotated[bool, typer.Option(
        "--drop-unused", help="categories without annotation are no classes")] = False,
    join_alike: Annotated[bool, typer.Option(
        "--join-names", help="join categories whose names differ in case, blanks or underscores "
                             "only")] = False,
) -> int:
    """Convert COCO annotations and their images to image shards; run it again to resume.

    Example: python -m data_tools.coco annotations/instances_train2017.json train2017 data/coco
    """
    if crowds not in ("ignore", "draw"):
        raise UserError(f"--crowds {crowds}: unknown", fix="choose ignore or draw")
    folder, existed = ImageFolder(image_dir), out.exists()
    choices = Choices(drop_untagged, masks, skip_bad, crowds == "draw", drop_unused, join_alike)
    try:
        report, notes, tally = convert_coco(instances, folder, out, list_file, choices,
                                            shard_size=shard_size, workers=workers)
    except UserError:
        if not existed:
            with suppress(OSError):  # not there, or not empty
                out.rmdir()
        raise
    _print_report(report, notes)
    show_sets({out.name: out})
    tally.print()
    return tally.exit_code


def _print_report(report: Mapping[str, int], notes: Sequence[str]) -> None:
    for key, text in REPORT.items():
        if report.get(key) or key in ALWAYS:
            say(f"{report[key]:>9} {text}")
    for note in notes:
        say(note)


if __name__ == "__main__":
    command(main)
