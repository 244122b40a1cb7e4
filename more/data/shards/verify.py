"""Check a shard set from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from more.data.shards.codec import mask_values
from more.data.shards.format import IGNORE, PAYLOADS
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


def verify_set(path: Path | str, decode: bool = False,
               progress: Callable[[int], None] | None = None) -> list[Problem]:
    """Everything that is wrong with a shard set; an empty list when it is sound.

    Checks the manifest, presence, size, sha256 and structure of each shard, checksums of each
    item, ids that come twice and files that the manifest does not know.

    Args:
        path: the shard set.
        decode: also decode every image and mask and compare sizes and mask values (slow).
        progress: called with the number of rows just checked.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [Problem(str(folder), "", error.message)]
    known = {entry.file for entry in manifest.shards}
    problems = [Problem(file.name, "", "not in the manifest")
                for file in sorted(folder.glob("*.h5")) if file.name not in known]
    seen: dict[str, str] = {}
    for number, entry in enumerate(manifest.shards):
        problems += _verify_shard(folder, number, entry.file, decode, seen)
        if progress is not None:
            progress(entry.rows)
    return problems


def _verify_shard(folder: Path, number: int, file: str, decode: bool,
                  seen: dict[str, str]) -> list[Problem]:
    """Problems of one shard; `seen` maps ids met so far to their shard."""
    problems: list[Problem] = []
    shard = None
    for check in ("full", "quick"):  # a wrong hash still lets the damaged item be found
        try:
            shard = ShardSet(folder, check=check, only=[number])
            break
        except UserError as error:
            problems = [Problem(file, "", error.message.removeprefix(f"{folder / file}: "))]
    if shard is None:
        return problems
    for row, image_id in enumerate(shard.ids):
        if image_id in seen:
            problems.append(Problem(file, image_id, f"id comes twice, also in {seen[image_id]}"))
        seen[image_id] = file
        try:
            _verify_row(shard, row, decode)
        except (UserError, ValueError) as error:
            what = str(getattr(error, "message", error)).removeprefix(f"{folder / file}: ")
            problems.append(Problem(file, image_id, what))
    shard.close()
    return problems


def _verify_row(shard: ShardSet, row: int, decode: bool) -> None:
    """Read every payload of a row (checksums) and decode it if asked; raises when wrong."""
    for name in PAYLOADS:
        shard.blob(name, row)
    size = tuple(int(side) for side in shard.sizes[row])
    if decode and shard.has("image"):
        stored = shard.image(row).shape[:2]
        if stored != size:
            raise ValueError(f"image is {stored}, the shard says {size}")
    mask = shard.mask(row) if decode else None
    if mask is not None:
        if mask.shape != size:
            raise ValueError(f"mask is {mask.shape}, the image {size}")
        values = mask_values(mask)
        strange = values[(values > shard.num_classes) & (values != IGNORE)]
        if len(strange):
            raise ValueError(f"mask holds {strange[:5].tolist()}, "
                             f"known are 0..{shard.num_classes} and {IGNORE}")
