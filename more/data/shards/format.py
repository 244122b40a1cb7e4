"""Names and file helpers of shard format 1.

A shard set is a folder of `shard-00000.h5 …` and `manifest.json`. One shard holds, per row:

| dataset | type | meaning |
|---|---|---|
| `ids` | UTF-8, fixed width `[N]` | name of the image |
| `tags` | uint8 `[N, C]` | 1 where the image shows the class |
| `sizes` | int32 `[N, 2]` | height and width of the image in pixels |
| `image/bytes` | uint8 `[M]` | all files of the shard, one after another |
| `image/offsets` | int64 `[N+1]` | row i is bytes[offsets[i]:offsets[i+1]] |
| `mask/…`, `seed/…`, `confidence/…` | likewise | where the set has them |
| `crc32` | uint32 `[N, P]` | per row and payload, in the order of the attribute `payloads` |

A payload of zero bytes means that the row has none. Every dataset carries fletcher32 sums, so
that a flipped bit raises on reading. Nothing in the file depends on time or machine: the same
input gives the same bytes, hence the same sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Any

from more.errors import UserError

FORMAT = 1
KINDS = ("images", "seeds", "masks")
PAYLOADS = ("image", "mask", "seed", "confidence")
MANIFEST = "manifest.json"
CHUNK_BYTES = 64 * 1024
IGNORE = 255
TEMPORARY = ".tmp."
AGAIN = ".again.hdf5"
"""Ends the name of a shard with images tried again, until it replaces the one of that number."""
# Our temporary names, one form a line: a file that is being written (`temporary_path`), the note of
# the image a worker is at, a mark of dask, a rank's state, and one that an earlier version wrote.
_OURS = re.compile("|".join((
    r".+\.tmp\.more-[A-Za-z0-9-]+-\d+-[0-9a-f]{8}(-journal|-wal|-shm)?",
    r"(shard|task)-.+\.tmp\.row",
    r"(driver|task)\.tmp\.[0-9a-f]{32}",
    r"rank-\d+-of-\d+\.tmp\.[\w-]*\.(works|through)",
    r"((failures-)?shard-\d+\.(h5|json)|manifest\.json|annotations\.sqlite)\.tmp\.\d+(-journal)?",
)), re.DOTALL)


def shard_name(number: int) -> str:
    """File name of shard `number`: `shard-00007.h5`."""
    return f"shard-{number:05d}.h5"


def check_id(image_id: str) -> None:
    """Refuse an id that cannot be a file name, since commands make file names of ids.

    Writers and readers both check: a shard from elsewhere must not lead out of an output folder.

    Args:
        image_id: the id.

    Raises:
        UserError: empty, "." or "..", over 200 bytes, with a slash, backslash, control
            character or an unpaired surrogate.
    """
    try:
        size = len(image_id.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(f"id {image_id!r}: not valid UTF-8", fix="rename the image") from error
    bad = any(char in "/\\" or ord(char) < 32 or ord(char) == 127 for char in image_id)
    if bad or image_id in ("", ".", "..") or size > 200:
        raise UserError(f"id {image_id!r}: cannot be a file name",
                        fix="use 1 to 200 bytes without slash, backslash and control characters")


def sidecar_path(shard: Path) -> Path:
    """The entry file beside a finished shard: `shard-00007.json`."""
    return shard.with_suffix(".json")


def temporary_path(final: Path) -> Path:
    """A new name in the same folder that no reader takes for a finished file.

    It holds host, process and a random part: ranks in containers have equal process ids. The host
    is cut short, so that an id of 200 bytes still gives a name of at most 255.
    """
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:12] or "host"
    return final.with_name(
        f"{final.name}{TEMPORARY}more-{host}-{os.getpid()}-{secrets.token_hex(4)}")


def is_temporary(name: str) -> bool:
    """Whether a file name is one of our own temporary names, and not a user's `a.tmp.png`."""
    return _OURS.fullmatch(name) is not None


def make_folder(folder: Path | str) -> Path:
    """Make an output folder.

    Args:
        folder: with its parents.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be made (a file is in the way, no permission), or not be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: is not a folder and cannot be made ({error.strerror})",
                        fix="give an output folder that can be made and written") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written", fix="give another output folder")
    return folder


def remove_temporaries(folder: Path) -> int:
    """Delete the temporary files that interrupted writers of ours left.

    Files of users stay, whatever they are called. Call it only while holding the folder's lock.

    Args:
        folder: where to look.

    Returns:
        How many files were removed.
    """
    stale = sorted(path for path in folder.glob(f"*{TEMPORARY}*") if is_temporary(path.name))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit(temporary: Path, final: Path) -> None:
    """Give a complete temporary file its final name so that a power cut cannot undo half of it."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`; an error such as a full disk carries the file's name."""
    try:
        path.write_bytes(data)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old content or the new one, never a part."""
    temporary = temporary_path(path)
    try:
        write_file(temporary, data)
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_json(value: Any) -> bytes:
    """Readable JSON with sorted keys: equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8") + b"\n"


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
