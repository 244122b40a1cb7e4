"""Say what is in a shard set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from data_tools.pool import command
from more.data.shards.format import PAYLOADS
from more.data.shards.reader import ShardSet


def describe(shards: ShardSet) -> dict[str, Any]:
    """Kind, counts, sizes, images per class and provenance, as JSON values."""
    counts = shards.tags.astype(np.int64).sum(0)
    return {
        "path": str(shards.path), "kind": shards.kind, "images": len(shards),
        "shards": len(shards.shard_rows),
        "bytes": sum(entry.bytes for entry in shards.manifest.shards),
        "payloads": [name for name in PAYLOADS if shards.has(name)],
        "smallest": shards.sizes.min(0).tolist(), "largest": shards.sizes.max(0).tolist(),
        "tags_per_image": float(shards.tags.sum(1).mean()),
        "without_tags": int((shards.tags.sum(1) == 0).sum()),
        "classes": dict(zip(shards.class_names, counts.tolist(), strict=True)),
        "provenance": shards.manifest.provenance, "extra": shards.manifest.extra,
    }


def main(
    shards: Annotated[Path, typer.Argument(metavar="SET", help="shard set to look into")],
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> int:
    """Print what a shard set holds: kind, images, sizes, images per class, provenance.

    Example: python -m data_tools.inspect data/voc_train_aug
    """
    facts = describe(ShardSet(shards))
    if as_json:
        print(json.dumps(facts))
        return 0
    classes, provenance = facts.pop("classes"), facts.pop("provenance")
    table = Table("what", "value", title=f"{facts.pop('path')}")
    for key, value in facts.items():
        table.add_row(key, f"{value:.2f}" if isinstance(value, float) else str(value))
    table.add_row("made by", f"{provenance.get('tool', '?')} {provenance.get('version', '')}")
    counts = Table("class", "images")
    for name, count in classes.items():
        counts.add_row(name, str(count))
    console = Console()
    console.print(table)
    console.print(counts)
    return 0


if __name__ == "__main__":
    command(main)
