"""`python -m data_tools.split`: one shard set → several, by share or by list, without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data_tools.build import build_set
from data_tools.copy_rows import LISTS, copy_rows, input_record, open_source, origin, rows_of
from data_tools.tool import ShareSeed, Workers, command
from more.data.split_parts import SplitPart, assign, parse_parts
from more.errors import UserError
from more.progress import Tally, say


def split(path: Path, out: Path, parts: Sequence[SplitPart], seed: int = 0, *, shard_size: int = 0,
          workers: int = 0) -> Tally:
    """Write `out/NAME` for every part of the set `path`; resumable.

    Payloads are copied byte for byte, each checksum compared; rows keep the order of the set.
    Files do not depend on the number of workers or on interruptions.

    Args:
        path: shard set of any kind.
        out: folder of the new sets.
        parts: from `parse_parts`; see `assign` for which ids a part gets.
        seed: another seed, other images in the shares.
        shard_size: rows per shard, 0 = automatic.
        workers: processes, 0 = all cores.

    Returns:
        Counts of images.

    Raises:
        UserError: a damaged set, impossible parts, a part's folder that holds another set or
            the set itself.
    """
    source = open_source(path)
    dealt = assign(source.ids, parts, seed)
    folders = {name: out / name for name in dealt}
    for folder in folders.values():
        if folder.resolve() == path.resolve():
            raise UserError(f"{folder}: is the set to split", fix="write to another folder")
    recorded = {part.name: part.recorded for part in parts}
    rows = {row.id: row for row in rows_of(source)}
    extra = {key: value for key, value in source.manifest.extra.items() if key not in LISTS}
    tally = Tally("images")
    for name, ids in dealt.items():
        say(f"{folders[name]}: {len(ids)} images")
        provenance = {**origin([source]), "tool": "data_tools.split",
                      "parameters": {"part": name, "parts": recorded, "seed": seed},
                      "inputs": input_record(source)}
        tally.merge(build_set(folders[name], source.kind, source.class_names, provenance,
                              [rows[image_id] for image_id in ids], copy_rows,
                              shard_size=shard_size, workers=workers, extra=extra))
    unused = len(source) - sum(map(len, dealt.values()))
    if unused:
        say(f"{unused} of {len(source)} images are in no part")
    return tally


def main(
    shards: Annotated[Path, typer.Argument(metavar="SET", help="shard set to split")],
    out: Annotated[Path, typer.Argument(help="folder to write the parts in: OUT/NAME")],
    part: Annotated[list[str], typer.Option(
        metavar="NAME=SHARE_OR_LIST", help="a part: its share of the images that no list names "
        "(0.8, 1/3), or a file with one id a line; several times")],
    seed: ShareSeed = 0,
    shard_size: Annotated[int, typer.Option(
        min=0, help="images per shard; 0 = by part size")] = 0,
    workers: Workers = 0,
) -> int:
    """Split a shard set of any kind into parts; run it again to resume.

    Nothing is decoded or encoded again. Which images a part gets depends on the ids, the parts
    and the seed alone.

    Example: python -m data_tools.split data/mine data/parts --part train=0.8 --part val=0.2
    """
    tally = split(shards, out, parse_parts(part), seed, shard_size=shard_size, workers=workers)
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
