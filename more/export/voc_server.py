"""Masks as the archive that the test server of PASCAL VOC 2012 takes (comp6, segmentation)."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from more.data.shards.codec import UNREADABLE, mask_values
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.data.tags import VOC_CLASSES
from more.errors import UserError, first_few
from more.export.opened_sets import LISTED, mask_of, open_masks
from more.export.output_files import reason, require_ending, whole_file
from more.export.png import encode_png
from more.palette import voc_palette
from more.progress import Tally, console, track

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def export_voc_server(masks: Path, out: Path, list_file: Path | None = None,
                      fill_ignore: str | None = None, progress: bool = True) -> Tally:
    """Write `out`, a .tar.gz of `results/VOC2012/Segmentation/comp6_test_cls/ID.png`.

    Each file is an index PNG with VOC's palette, of exactly the image's size, indices 0..20. The
    archive gets its name only after it was read again and every picture compared. The same masks
    give the same bytes: sorted names, no times, no owners.

    Args:
        masks: shard set of kind `masks`, or `images` with masks, with VOC's 20 classes.
        out: `NAME.tar.gz`.
        list_file: ids that must be there, no others, one a line; `ImageSets/Segmentation/test.txt`.
        fill_ignore: "background" turns pixels of value 255 to 0; None refuses them.
        progress: show a progress line.

    Returns:
        Counts of images. If any failed, `out` is not written.

    Raises:
        UserError: other classes, ids lacking or too many, pixels of value 255, a name without
            `.tar.gz`, or an archive that does not read back as written.
    """
    out = Path(out)
    require_ending(out, ".tar.gz", "voc-server")
    if fill_ignore not in (None, "background"):
        raise UserError(f"--fill-ignore {fill_ignore}: unknown", fix="choose background")
    wanted = None if list_file is None else read_ids(list_file)
    source = open_masks(masks)
    if source.class_names != list(VOC_CLASSES):
        raise UserError(f"{masks}: its {source.num_classes} classes are not VOC's 20 classes in "
                        f"VOC's order", fix="give masks of a VOC set (data_tools.voc); for other "
                        "sets choose --format png")
    if wanted is not None:
        check_ids(source, list_file, wanted)
    tally = Tally("masks")
    rows = sorted(source, key=lambda row: source.ids[row])
    with whole_file(out) as temporary:
        sums, ignored = _write_archive(temporary, source, rows, bool(fill_ignore), tally, progress)
        if ignored:
            raise UserError(f"{masks}: {len(ignored)} of {len(source)} masks hold pixels of value "
                            f"{IGNORE}, which the server does not take: "
                            f"{first_few(ignored, LISTED)}",
                            fix="--fill-ignore background makes them background; or refine "
                                "without --ignore-below")
        if tally.failures:
            temporary.unlink()
            console.print(f"{out} was not written: {len(tally.failures)} masks failed",
                          highlight=False, markup=False)
            return tally
        read_back(temporary, out, source, rows, sums, progress)
    return tally


def _write_archive(path: Path, source: ShardSet, rows: list[int], fill: bool, tally: Tally,
                   progress: bool) -> tuple[dict[str, int], list[str]]:
    """Write and count the masks.

    Args:
        path: the archive.
        source: the masks.
        rows: of the masks, in the order of the archive.
        fill: pixels of value 255 become 0.
        tally: counts them.
        progress: show a progress line.

    Returns:
        crc32 of each file by its name in the archive; ids of masks with pixels of value 255.
    """
    sums, ignored = {}, []
    with (track(len(rows), "export", "masks", disable=not progress) as bar,
          open(path, "wb") as raw,
          gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT,
                       encoding="utf-8") as archive):
        for row in rows:
            image_id = source.ids[row]
            try:
                mask = mask_of(source, row)
            except (UserError, OSError) as error:
                tally.fail(image_id, reason(error))
            else:
                if fill:
                    mask[mask == IGNORE] = 0
                elif (mask == IGNORE).any():
                    ignored.append(image_id)
                data = encode_png(mask, voc_palette())
                sums[member_name(image_id)] = zlib.crc32(data)
                add_file(archive, member_name(image_id), data)
                tally.ok()
            bar.advance()
    return sums, ignored


def member_name(image_id: str) -> str:
    """Name in the archive."""
    return f"{FOLDER}/{image_id}.png"


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file without time and owner."""
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, no names of owners
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def read_ids(path: Path) -> list[str]:
    """Ids of a list file, one a line, blank lines left out.

    Args:
        path: the list.

    Returns:
        The ids, in order.

    Raises:
        UserError: no such file, not UTF-8, empty, or an id twice.
    """
    try:
        lines = (line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"--list {path}: no such file",
                        fix="give a text file with one id a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8", fix="save the list as UTF-8") from error
    ids = [line for line in lines if line]
    if not ids:
        raise UserError(f"{path}: the list is empty", fix="write one id a line")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{path}: ids twice in the list: {first_few(twice, LISTED)}",
                        fix="remove one of them")
    return ids


def check_ids(source: ShardSet, path: Path | None, wanted: list[str]) -> None:
    """Raise UserError unless the set has exactly the ids of the list."""
    held, listed = set(source.ids), set(wanted)
    missing = [name for name in wanted if name not in held]
    surplus = [name for name in source.ids if name not in listed]
    wrong = [f"{len(names)} {what}: {first_few(names, LISTED)}" for what, names in
             (("missing", missing), ("not in the list", surplus)) if names]
    if wrong:
        raise UserError(f"{source.path} does not hold the ids of {path}; {'; '.join(wrong)}",
                        fix="make masks for the missing ones, and take out the others with "
                            "`python -m data_tools.split MASKS OUT --part NAME=LIST.txt`")


def read_back(path: Path, name: Path, source: ShardSet, rows: list[int], sums: dict[str, int],
              progress: bool = True) -> None:
    """Compare an archive with what was to be written.

    Args:
        path: the archive.
        name: what to call it.
        source: the masks.
        rows: of the masks, in the order of the archive.
        sums: crc32 of each file by its name in the archive.
        progress: show a progress line.

    Raises:
        UserError: a file lacks, is too many, or is no index PNG of its image's size with 0..20.
    """
    expected, found = [member_name(source.ids[row]) for row in rows], []
    try:
        with (track(len(rows), "check", "masks", disable=not progress) as bar,
              tarfile.open(path, mode="r|gz", encoding="utf-8") as archive):
            for member in archive:
                content = archive.extractfile(member)
                data = content.read() if content else b""
                size = source.sizes[rows[len(found)]] if len(found) < len(rows) else (0, 0)
                if zlib.crc32(data) != sums.get(member.name) or not _is_valid(data, tuple(size)):
                    raise ValueError(f"{member.name} differs")
                found.append(member.name)
                bar.advance()
        if found != expected:
            raise ValueError(f"{len(found)} files of {len(expected)}")
    except (*UNREADABLE, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: does not read back as written ({error})",
                        fix=f"check the disk that holds {name.parent}") from error


def _is_valid(data: bytes, size: tuple[int, ...]) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        values = mask_values(np.asarray(picture)) if picture.mode == "P" else np.array([IGNORE])
        return (picture.height, picture.width) == size and values.max() <= len(VOC_CLASSES)
