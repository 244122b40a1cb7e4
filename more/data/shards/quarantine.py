"""Open a set for training: damaged images stop it, or are left out by name up to a limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from more.data.shards.format import sha256_file
from more.data.shards.reader import ShardSet
from more.errors import UserError


@dataclass(frozen=True)
class Damaged:
    """An image that cannot be read as it was written: shard file, id, payload and row."""

    file: str
    id: str
    payload: str
    row: int


def open_checked(path: Path | str, *, quarantine: float = 0.0, share: tuple[int, int] = (0, 1),
                 cache: Path | str | None = None) -> tuple[ShardSet, list[Damaged]]:
    """A set of images whose every byte was checked.

    Without quarantine each rank hashes its share of the files, and any difference stops the start.
    With it every rank hashes all, so that all leave out the same images.

    Args:
        path: the shard set.
        quarantine: largest share of the images that may be left out, 0..1; 0 = none.
        share: number of this process, and of all.
        cache: see `ShardSet`.

    Returns:
        The set without the damaged images, and what these are.

    Raises:
        UserError: as `ShardSet`; more damaged images than allowed; or a shard that changed
            although each of its images is sound (then its tags cannot be trusted either).
    """
    if quarantine <= 0:
        return ShardSet(path, kind="images", check="full", share=share, cache=cache), []
    shards = ShardSet(path, kind="images", cache=cache)
    damaged = [item for number in range(len(shards.manifest.shards))
               for item in _damaged(shards, number)]
    if len(damaged) > quarantine * len(shards):
        first = ", ".join(f"{item.file} {item.id!r}" for item in damaged[:3])
        raise UserError(
            f"{path}: {len(damaged)} of {len(shards)} images are damaged ({first}), more than "
            f"data.quarantine = {quarantine} allows",
            fix="make the damaged shards again; python -m data_tools.verify names them all")
    return (shards.without(item.row for item in damaged) if damaged else shards), damaged


def _damaged(shards: ShardSet, number: int) -> list[Damaged]:
    """The damaged images of one shard; none where its hash is right."""
    entry = shards.manifest.shards[number]
    path = shards.path / entry.file
    if sha256_file(path) == entry.sha256:
        return []
    found = []
    for row in shards.rows_of(number):
        for payload in ("image", "mask"):
            try:
                shards.blob(payload, row)
            except UserError:
                found.append(Damaged(entry.file, shards.ids[row], payload, row))
                break
    if not found:
        raise UserError(f"{path}: content changed since it was written (sha256 differs), "
                        "outside the images", fix="restore the file from a copy, or delete it and "
                        "run the command that made the set again")
    return found
