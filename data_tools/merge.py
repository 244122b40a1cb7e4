"""`python -m data_tools.merge`: several shard sets → one, without decoding anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.build import build_set
from data_tools.copy_rows import (
    LISTS,
    agreed,
    copy_rows,
    input_record,
    open_source,
    origin,
    rows_of,
)
from data_tools.tool import ShardSize, Workers, command
from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few
from more.evaluation.routes import describe_route, seed_facts
from more.progress import Tally, say


def merge(out: Path, sets: Sequence[Path], *, shard_size: int = 0, workers: int = 0) -> Tally:
    """Write the rows of `sets`, one set after another, as the shard set `out`; resumable.

    Payloads are copied byte for byte, each checksum compared. Files do not depend on the number
    of workers or on interruptions.

    Args:
        out: folder of the new set.
        sets: two or more sets of one kind with the same classes in the same order.
        shard_size: rows per shard, 0 = automatic.
        workers: processes, 0 = all cores.

    Returns:
        Counts of images.

    Raises:
        UserError: fewer than two sets; kinds, classes or ways of making differ; an id twice; a
            damaged set; `out` holds another set.
    """
    if len(sets) < 2:
        raise UserError("merge needs two sets or more",
                        fix="name the new folder first, then the sets: merge OUT SET SET")
    sources = [open_source(path) for path in sets]
    check_alike(sources)
    check_disjoint(sources)
    extra, left_out = _extras(sources)
    provenance = {**origin(sources), "tool": "data_tools.merge", "parameters": {},
                  "inputs": {str(k): input_record(source) for k, source in enumerate(sources)}}
    rows = [row for source in sources for row in rows_of(source)]
    return build_set(out, sources[0].kind, sources[0].class_names, provenance, rows, copy_rows,
                     shard_size=shard_size, workers=workers, extra=extra, left_out=left_out)


def check_alike(sources: Sequence[ShardSet]) -> None:
    """Raise UserError unless kind, classes and, for seeds and masks, the route are the same."""
    first = sources[0]
    for other in sources[1:]:
        if other.kind != first.kind:
            raise UserError(f"{other.path} holds {other.kind}, {first.path} {first.kind}",
                            fix="merge sets of one kind")
        if other.class_names != first.class_names:
            raise UserError(f"{other.path} has other classes than {first.path}: "
                            f"{class_difference(first.class_names, other.class_names)}",
                            fix="convert both with the same list of classes (--classes)")
        if first.kind != "images" and _route(other) != _route(first):
            raise UserError(f"{other.path} was made in another way than {first.path}: "
                            f"{_route(other)}; {_route(first)}",
                            fix="merge seeds or masks that were made alike")


def class_difference(first: Sequence[str], other: Sequence[str]) -> str:
    """What tells two lists of classes apart, in words."""
    lacks = [name for name in first if name not in other]
    new = [name for name in other if name not in first]
    parts = [f"it lacks {', '.join(lacks)}"] * bool(lacks)
    parts += [f"only it has {', '.join(new)}"] * bool(new)
    if not parts:
        moved = [f"class {k} is {theirs}, not {ours}"
                 for k, (ours, theirs) in enumerate(zip(first, other, strict=True), 1)
                 if ours != theirs]
        parts = ["the same names in another order: " + first_few(moved)]
    return "; ".join(parts)


def check_disjoint(sources: Sequence[ShardSet]) -> None:
    """Raise UserError, with names, for ids that come twice."""
    owner: dict[str, ShardSet] = {}
    for source in sources:
        twice = [name for name in source.ids if name in owner]
        if twice:
            raise UserError(f"{source.path}: {len(twice)} ids are also in "
                            f"{owner[twice[0]].path}: {first_few(twice)}",
                            fix="give the images other names, or split the double ones off")
        owner.update(dict.fromkeys(source.ids, source))


def _route(shards: ShardSet) -> str:
    provenance = shards.manifest.provenance
    return describe_route(provenance, seed_facts(provenance).get("threshold"))


def _extras(sources: Sequence[ShardSet]) -> tuple[dict[str, Any], list[str]]:
    """The manifest's further values that all sets agree on, their lists joined; ids left out."""
    extras = [source.manifest.extra for source in sources]
    held = {image_id for source in sources for image_id in source.ids}
    left_out = [name for extra in extras for name in extra.get("left_out", ())
                if name not in held]
    kept = {key: value for key, value in agreed(extras).items() if key not in LISTS}
    dropped = sorted({key for extra in extras for key in extra} - kept.keys() - set(LISTS))
    if dropped:
        say(f"not kept, the sets differ in it: {', '.join(dropped)}")
    failures = [item for extra in extras for item in extra.get("failures", ())
                if item[0] not in held]
    return kept | ({"failures": failures} if failures else {}), list(dict.fromkeys(left_out))


def main(
    out: Annotated[Path, typer.Argument(help="shard set to write")],
    sets: Annotated[list[Path], typer.Argument(metavar="SET SET …", help="shard sets to join")],
    shard_size: ShardSize = 0,
    workers: Workers = 0,
) -> int:
    """Join shard sets of one kind and the same classes; run it again to resume.

    Nothing is decoded or encoded again. The images come in the order of the sets.

    Example: python -m data_tools.merge data/all data/voc_train data/mine
    """
    tally = merge(out, sets, shard_size=shard_size, workers=workers)
    tally.print()
    return tally.exit_code


if __name__ == "__main__":
    command(main)
