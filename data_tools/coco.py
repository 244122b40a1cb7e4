"""COCO layout (instances_*.json and image folders of 2014 or 2017) → image shards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import check_ids, sole_writer
from data_tools.coco_files import ImageFolder, choose, locate, read_list
from data_tools.coco_index import Counts, annotation_database, index_annotations
from data_tools.coco_json import PASSES, Category, CocoImage, InstancesFile, megabytes
from data_tools.coco_masks import MaskSource, read_mask
from data_tools.convert import Record, convert
from data_tools.pool import command
from data_tools.sources import unchanged
from more import __version__
from more.data.shards.format import MANIFEST, sha256_bytes, sha256_file
from more.data.shards.manifest import Manifest, finished_shards, read_manifest
from more.errors import UserError
from more.progress import Tally, console, track

REPORT = {  # counts in the manifest's extra["report"], and how they are printed
    "images": "images",
    "annotations": "annotations",
    "crowd_regions": "crowd regions",
    "empty_segmentations": "annotations without segmentation (tag only)",
    "small_polygons": "polygons of fewer than 3 points (not drawn)",
    "unknown_category": "annotations of an unknown category (left out)",
    "unlisted_images": "annotations of images that the file does not list (ignored)",
    "other_images": "annotations of images that are not converted",
    "missing_files": "images without a file (left out)",
    "without_tags": "images without a tag",
    "dropped": "images without a tag that were left out (--drop-untagged)",
}


@dataclass(frozen=True)
class Work:
    """What the files say: categories in class order, images to convert, counts, missing images."""

    categories: list[Category]
    records: list[Record]
    report: dict[str, int]
    missing: list[CocoImage]

    @property
    def extra(self) -> dict[str, Any]:
        """What the manifest keeps beside the usual."""
        categories = [{"index": index, **category._asdict()}
                      for index, category in enumerate(self.categories, 1)]
        return {"categories": categories, "report": self.report,
                "missing_files": [image.file_name for image in self.missing]}


def read_work(instances: Path, folder: ImageFolder, names: Sequence[str] | None,
              list_file: Path | None, database: Path | None, *, drop_untagged: bool = False,
              skip_bad: bool = False) -> Work:
    """Read the annotations and find the images; what is wrong shows before anything is written.

    Args:
        instances: the JSON file.
        folder: where the images are.
        names: images to convert, from `list_file`; None for all.
        list_file: for messages.
        database: made for the workers; None when no masks are wanted.
        drop_untagged: leave out images that show none of the classes.
        skip_bad: leave out images without a file and annotations of unknown category.

    Raises:
        UserError: the file is no complete instances file, images or categories are missing.
    """
    with track(PASSES * megabytes(instances), f"reading {instances.name}", "MB") as bar:
        source = InstancesFile(instances, bar)
        categories = source.categories()
        images = source.images()
        wanted = images if names is None else choose(images, names, list_file)
        check_ids(image.name for image in wanted)
        chosen, files, missing = locate(wanted, folder)
        _check_missing(missing, wanted, folder, skip_bad)
        labels = {category.id: index for index, category in enumerate(categories, 1)}
        counts, tags = index_annotations(
            source, database, {image.id: number for number, image in enumerate(chosen)},
            {image.id for image in images}, labels)
    _check_categories(counts, instances, skip_bad)
    records = []
    for number, (image, file) in enumerate(zip(chosen, files, strict=True)):
        if tags[number] or not drop_untagged:
            mask = database and MaskSource(database, number, image.file_name, image.height,
                                           image.width)
            records.append(Record(image.name, file, mask,
                                  tuple(label - 1 for label in sorted(tags[number]))))
    untagged = sum(not present for present in tags)
    report = {**asdict(counts), "images": len(records), "missing_files": len(missing),
              "without_tags": untagged, "dropped": len(chosen) - len(records)}
    return Work(categories, records, {key: report[key] for key in REPORT}, missing)


def _check_missing(missing: list[CocoImage], wanted: list[CocoImage], folder: ImageFolder,
                   skip_bad: bool) -> None:
    if missing and (not skip_bad or len(missing) == len(wanted)):
        first = ", ".join(image.file_name for image in missing[:20])
        raise UserError(f"{folder.root}: {len(missing)} of {len(wanted)} images have no file: "
                        f"{first}", fix="give the folder that holds them, complete it, or choose "
                        "images with --list; --skip-bad leaves out those without a file")


def _check_categories(counts: Counts, instances: Path, skip_bad: bool) -> None:
    if counts.unknown_category and not skip_bad:
        raise UserError(f"{instances}: {counts.unknown_category} annotations name a category that "
                        f"the file does not have: {', '.join(counts.examples)}",
                        fix="complete the categories, or leave these annotations out with "
                            "--skip-bad")


def finished(out: Path, asked: dict[str, Any], folder: ImageFolder) -> Manifest | None:
    """The manifest of `out` if the set is complete, so that nothing need be read; else None.

    Args:
        out: folder of the set.
        asked: the part of its provenance that is known before the annotations are read.
        folder: where the images are; one that was missing then may be there now.

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


def convert_coco(instances: Path, folder: ImageFolder, out: Path, list_file: Path | None, *,
                 drop_untagged: bool, masks: bool, shard_size: int, workers: int,
                 skip_bad: bool) -> tuple[dict[str, int], Tally]:
    """Write the set; see `main`. The report and the counts of images."""
    megabytes(instances)
    names = None if list_file is None else read_list(list_file)
    with sole_writer(out), annotation_database(out) as database:
        provenance = {"tool": "data_tools.coco",
                      "parameters": {"drop_untagged": drop_untagged, "masks": masks,
                                     "list": names and sha256_bytes("\n".join(names).encode())},
                      "inputs": {"instances": sha256_file(instances)}}
        asked = {**provenance, "version": __version__, "skip_bad": skip_bad,
                 **({"shard_size": shard_size} if shard_size else {})}
        if (manifest := finished(out, asked, folder)) is not None:
            tally = Tally("images", skipped=manifest.rows + len(manifest.extra["left_out"]))
            return manifest.extra["report"], tally
        work = read_work(instances, folder, names, list_file, database if masks else None,
                         drop_untagged=drop_untagged, skip_bad=skip_bad)
        ids = [record.id for record in work.records]
        provenance["rows"] = {"images": len(ids), "sha256": sha256_bytes("\n".join(ids).encode())}
        tally = convert(out, work.records, [category.name for category in work.categories],
                        provenance, read_mask, shard_size=shard_size, workers=workers,
                        skip_bad=skip_bad, extra=work.extra,
                        left_out=[image.name for image in work.missing])
        tally.skip(len(work.missing))
    return work.report, tally


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
    shard_size: Annotated[int, typer.Option(
        min=0, help="images per shard; 0 = by set size")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = all cores")] = 0,
    skip_bad: Annotated[bool, typer.Option(
        "--skip-bad", help="leave out unreadable and missing images, unknown categories")] = False,
) -> int:
    """Convert COCO annotations and their images to image shards; run it again to resume.

    Example: python -m data_tools.coco annotations/instances_train2017.json train2017 data/coco
    """
    folder, existed = ImageFolder(image_dir), out.exists()
    try:
        report, tally = convert_coco(
            instances, folder, out, list_file, drop_untagged=drop_untagged, masks=masks,
            shard_size=shard_size, workers=workers, skip_bad=skip_bad)
    except UserError:
        if not existed:
            with suppress(OSError):  # not there, or not empty
                out.rmdir()
        raise
    for key, text in REPORT.items():
        console.print(f"{report[key]:>9} {text}", highlight=False, markup=False)
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
