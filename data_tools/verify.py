"""`python -m data_tools.verify`: checks a shard set, on request with every image and mask."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from data_tools.tool import command, parallel
from more.data.shards.manifest import REBUILD, read_manifest
from more.data.shards.verification import verify_set
from more.progress import say, track

# Below this many bytes the work takes less time than starting processes.
_SMALL = 32 * 1024 * 1024


def main(
    shards: Annotated[Path, typer.Argument(metavar="SET", help="shard set to check")],
    decode: Annotated[bool, typer.Option("--decode", help="also decode images and masks")] = False,
    workers: Annotated[int, typer.Option(
        min=0, help="processes; 0 = all cores, one for a small set")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> int:
    """Read a whole shard set and name everything that is wrong; exit code 1 if anything is.

    Every hash, every checksum, every image header; with --decode every pixel. Nothing is changed.
    A damaged shard is made again by the command that wrote the set.

    Example: python -m data_tools.verify data/voc_train_aug --decode
    """
    manifest = read_manifest(shards)
    total = sum(entry.bytes for entry in manifest.shards)
    processes = workers or (1 if total < _SMALL else 0)
    started = time.monotonic()
    with track(manifest.rows, "verifying") as bar:
        problems = verify_set(shards, decode, bar.advance,
                              lambda function, tasks: parallel(function, tasks, processes))
    seconds = max(time.monotonic() - started, 1e-3)
    if as_json:
        print(json.dumps({"images": manifest.rows, "shards": len(manifest.shards),
                          "problems": [vars(problem) for problem in problems]}))
    broken = {problem.file for problem in problems}
    sound = sum(entry.file not in broken for entry in manifest.shards)
    say(f"{shards}: {sound} of {len(manifest.shards)} shards are sound, "
        f"{len(problems)} problems; {manifest.rows} images, {total / 1e6:.1f} MB, "
        f"{total / 1e6 / seconds:.0f} MB/s")
    for problem in problems:
        say(f"  {problem}")
    if problems:
        say(f"  fix: {REBUILD}")
    return 1 if problems else 0


if __name__ == "__main__":
    command(main)
