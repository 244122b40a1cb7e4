"""Checks of a whole shard set: manifest, hashes, checksums, headers, and pixels on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from more.data.shards.codec import decode_image, decode_mask, image_size, mask_values
from more.data.shards.format import AGAIN, IGNORE, PAYLOADS
from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the image (empty for a whole file) and what."""

    file: str
    image: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f' {self.image!r}' if self.image else ''}: {self.what}"


@dataclass(frozen=True)
class ShardTask:
    """One shard to check: folder of the set, number and file of the shard, its rows by manifest."""

    folder: Path
    number: int
    file: str
    rows: int
    decode: bool


@dataclass(frozen=True)
class ShardCheck:
    """What a check found: problems of the shard, and its ids as far as they can be read."""

    problems: list[Problem]
    ids: list[str] = field(default_factory=list)


def in_order(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Run `function` over tasks here, one after another; pairs (task, result)."""
    for task in tasks:
        yield task, function(task)


def verify_set(path: Path | str, decode: bool = False,
               progress: Callable[[int], None] | None = None,
               run: Callable[..., Iterator[tuple[Any, Any]]] = in_order) -> list[Problem]:
    """Everything that is wrong with a shard set; an empty list when it is sound.

    Checks the manifest; presence, size, sha256 and structure of each shard; the checksum of each
    item; the size in the header of each image and mask; ids that come twice; files that the
    manifest does not know.

    Args:
        path: the shard set.
        decode: also decode every image and mask and look at the mask values (slow).
        progress: called with the number of rows just checked.
        run: gives pairs (task, result or exception) of a function over `ShardTask`s, in any
            order; `data_tools.tool.parallel` for several processes. Results do not depend on it.

    Returns:
        The problems, in the order of the shards.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [Problem(str(folder), "", error.message)]
    known = {entry.file for entry in manifest.shards}
    replaced = {file.removesuffix(AGAIN) + ".h5" for file in known if file.endswith(AGAIN)}
    problems = [Problem(file.name, "", "not in the manifest")
                for file in sorted(folder.glob("*.h5")) if file.name not in known | replaced]
    if not known:
        problems.append(Problem(str(folder), "", "the set has no shard"))
    tasks = [ShardTask(folder, number, entry.file, entry.rows, decode)
             for number, entry in enumerate(manifest.shards)]
    checks: dict[int, ShardCheck] = {}
    for task, result in run(verify_shard, tasks):
        if isinstance(result, BaseException):  # a process that died, no memory, …
            why = getattr(result, "message", None) or repr(result)
            result = ShardCheck([Problem(task.file, "", f"could not be checked: {why}")])
        checks[task.number] = result
        if progress is not None:
            progress(task.rows)
    return problems + _of_shards(tasks, checks)


def _of_shards(tasks: Sequence[ShardTask], checks: Mapping[int, ShardCheck]) -> list[Problem]:
    """Problems of all shards in order, and ids that come twice."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for task in tasks:
        problems += checks[task.number].problems
        for image_id in checks[task.number].ids:
            if image_id in seen:
                problems.append(Problem(task.file, image_id,
                                        f"id comes twice, also in {seen[image_id]}"))
            seen[image_id] = task.file
    return problems


def verify_shard(task: ShardTask) -> ShardCheck:
    """Check one shard with all its rows, in one thread, since several processes may do this."""
    cv2.setNumThreads(0)
    shard, found = None, []
    for check in ("full", "quick"):  # a wrong hash still lets the damaged item be found
        try:
            shard = ShardSet(task.folder, check=check, only=[task.number])
            break
        except UserError as error:
            found.append(_what(task, error))
    problems = [Problem(task.file, "", what) for what in dict.fromkeys(found)]
    if shard is None:
        return ShardCheck(problems)
    for row, image_id in enumerate(shard.ids):
        try:
            _verify_row(shard, row, task.decode)
        except Exception as error:  # noqa: BLE001 - whatever a damaged file raises, it is named
            problems.append(Problem(task.file, image_id, _what(task, error)))
    shard.close()
    return ShardCheck(problems, shard.ids)


def _what(task: ShardTask, error: Exception) -> str:
    """An error's text without the file, which the problem names already."""
    known = isinstance(error, UserError | ValueError)
    text = str(getattr(error, "message", error)) if known else repr(error)
    return text.removeprefix(f"{task.folder / task.file}: ")


def _verify_row(shard: ShardSet, row: int, decode: bool) -> None:
    """Read every payload of a row (checksums), look into the headers, decode if asked; raises."""
    data = {name: shard.blob(name, row) for name in PAYLOADS}
    size = tuple(int(side) for side in shard.sizes[row])
    if shard.kind == "images":
        _same_size("image", image_size(data["image"], "image"), size)
    if data["mask"]:
        _same_size("mask", image_size(data["mask"], "mask"), size)
    if decode and data["image"]:
        _same_size("image", decode_image(data["image"], "image").shape[:2], size)
    if decode and data["mask"]:
        mask = decode_mask(data["mask"], "mask")
        _same_size("mask", mask.shape, size)
        values = mask_values(mask)
        strange = values[(values > shard.num_classes) & (values != IGNORE)]
        if len(strange):
            raise ValueError(f"mask holds {strange[:5].tolist()}, "
                             f"known are 0..{shard.num_classes} and {IGNORE}")


def _same_size(name: str, found: tuple[int, ...], stored: tuple[int, ...]) -> None:
    if tuple(found) != stored:
        raise ValueError(f"{name} is {found[0]}x{found[1]}, the shard says "
                         f"{stored[0]}x{stored[1]} (height x width)")
