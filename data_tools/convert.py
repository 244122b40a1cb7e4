"""What the converters share: writing image files, masks and tags to shards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_tools.build import ShardJob, ShardResult, build_set, check_ids, sole_writer
from data_tools.image_checks import check_image, check_values
from data_tools.source_files import with_sources
from more.data.index_masks import align_mask
from more.data.shards.codec import encode_mask, mask_values
from more.data.shards.format import IGNORE
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.progress import Tally

# System errors that a single file may cause; any other would meet the next image as well.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
                errno.ENAMETOOLONG, errno.EIO)


@dataclass(frozen=True)
class Record:
    """One image to convert.

    Attributes:
        id: name of the image in the set.
        image: its file.
        mask: what the tool's `read_mask` makes the label map from: a file, or a small object that
            can be pickled, whose text names it in messages and whose `path` is its file, if it has
            one; None without mask.
        tags: class indices from 0; None takes them from the mask.
        file: name of the image in its data set, with folders and ending; "" is that of `image`.
    """

    id: str
    image: Path
    mask: Any = None
    tags: tuple[int, ...] | None = None
    file: str = ""


@dataclass(frozen=True)
class _Options:
    read_mask: Callable[[Any], np.ndarray]
    skip_bad: bool


def convert(out: Path, records: Sequence[Record], class_names: list[str],
            provenance: dict[str, Any], read_mask: Callable[[Any], np.ndarray], *,
            shard_size: int = 0, workers: int = 0, skip_bad: bool = False,
            extra: dict[str, Any] | None = None, left_out: Sequence[str] = ()) -> Tally:
    """Write `records` as the shard set `out` (see `build_set` for resuming and the manifest).

    Args:
        out: folder of the set.
        records: of the images, in order.
        class_names: foreground classes in order.
        provenance: tool and parameters.
        read_mask: makes uint8 `[H, W]` of `Record.mask`: 0 background, 1..C classes, 255 ignore; a
            function of a module, since it is sent to workers.
        skip_bad: leave unreadable images out instead of failing.
        shard_size, workers, extra, left_out: as in `build_set`.

    Returns:
        Counts of images.

    Raises:
        UserError: as `build_set`; or `out` was made from other files.
    """
    check_ids(record.id for record in records)  # before any work
    with sole_writer(out):
        provenance = with_sources(out, records, {**provenance, "skip_bad": skip_bad})
        return build_set(out, "images", class_names, provenance, records, write_shard,
                         _Options(read_mask, skip_bad), shard_size=shard_size, workers=workers,
                         extra=extra, left_out=left_out)


def write_shard(part: ShardJob) -> ShardResult:
    """Write one shard; without `skip_bad` it is not written if a single image is unreadable.

    Args:
        part: what to write.

    Returns:
        What became of it.

    Raises:
        OSError: one that no single image causes (too many open files, no memory, a full disk).
    """
    cv2.setNumThreads(0)
    bad, recoded = [], 0
    writer = ShardWriter(part.path, part.kind, part.class_names, part.provenance)
    for record in part.rows:
        reason = part.take(record.id)
        if reason is not None:
            bad.append((record.id, f"{record.image}: {reason}"))
            continue
        try:
            recoded += _add(writer, record, part.options.read_mask)
        except (UserError, ValueError, OSError) as error:
            _raise_if_of_the_job(error, record)
            bad.append((record.id, str(getattr(error, "message", error))))
    part.take(None)
    if len(writer) == 0 or (bad and not part.options.skip_bad):
        return ShardResult(None, 0, bad)
    entry = writer.close()
    return ShardResult(entry, len(writer), bad, recoded)


def _raise_if_of_the_job(error: BaseException, record: Record) -> None:
    """Raise the system error behind `error` unless the files of one image can be its cause.

    Otherwise `--skip-bad` would leave good images out of the set.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None  # Pillow's own have none
        if number is not None and number not in _OF_ONE_FILE:
            raise OSError(number, os.strerror(number),
                          str(cause.filename or record.image)) from error
        cause = cause.__cause__


def _add(writer: ShardWriter, record: Record, read_mask: Callable[[Any], np.ndarray]) -> bool:
    """Write one row; whether the image is stored in another format than it came."""
    data = record.image.read_bytes()
    stored, size = check_image(data, record.image)
    count = len(writer.class_names)
    mask = None if record.mask is None else read_mask(record.mask)
    if mask is not None:
        mask = align_mask(mask, size, data, f"{record.mask}")
        check_values(mask, count, record.mask)
    tags = np.zeros(count, np.uint8)
    present = record.tags
    if present is None:
        present = tuple(int(v) - 1 for v in mask_values(mask) if v not in (0, IGNORE))
    tags[list(present)] = 1
    writer.add(record.id, tags, size, image=stored, file=record.file or record.image.name,
               mask=None if mask is None else encode_mask(mask))
    return stored is not data
