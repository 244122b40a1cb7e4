"""`python -m data_tools.inspect`: what a shard set holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.bar import Bar
from rich.console import Console
from rich.text import Text

from data_tools.set_facts import count_pixels, describe
from data_tools.tool import command
from more.data.class_counts import few_note, most_first
from more.data.shards.reader import ShardSet
from more.progress import PlainTable

_BAR = 30  # characters


def _bars(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> PlainTable:
    """A table whose rows begin with a name and a count; the count ends them as a bar."""
    table = PlainTable(*columns, "", title=title)
    largest = max([1, *(row[1] for row in rows)])
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row), Bar(largest, 0, row[1], width=_BAR))
    return table


def show(facts: dict[str, Any], console: Console) -> None:
    """Print what `describe` found, as tables."""
    table = PlainTable("what", "value", title=Text(facts["path"]))
    for key in ("kind", "images", "shards", "bytes", "tags_per_image", "without_tags"):
        value = facts[key]
        table.add_row(key, f"{value:.2f}" if isinstance(value, float) else str(value))
    for name, count in facts["present"].items():
        table.add_row(f"with {name}", str(count))
    for key in ("smallest", "median", "largest"):
        table.add_row(f"{key} (height x width)", "{:g} x {:g}".format(*facts[key]))
    aspect = facts["aspect"]
    table.add_row("width / height", f"{aspect['p0']:.2f} to {aspect['p100']:.2f}, "
                                    f"median {aspect['p50']:.2f}")
    made = facts["provenance"]
    table.add_row("made by", Text(f"{made.get('tool', '?')} {made.get('version', '')}"))
    for key, value in facts["extra"].items():  # lists may name thousands: --json has them
        table.add_row(key, Text(str(len(value)) if isinstance(value, list) else
                                json.dumps(value, ensure_ascii=False)[:300]))
    console.print(table)
    console.print(_bars("longer side", ("pixels", "images"),
                        list(facts["longer_side_counts"].items())))
    console.print(_bars("classes", ("class", "images"), list(most_first(facts["classes"]).items())))
    note = few_note(facts["classes"]) if any(facts["classes"].values()) else None
    if note:
        console.print(Text(f"warning: {note}", style="yellow"))
    if "pixels" in facts:
        total = max(sum(item["pixels"] for item in facts["pixels"].values()), 1)
        console.print(_bars("masks", ("label", "pixels", "share", "images"), [
            (name, item["pixels"], f"{item['pixels'] / total:.2%}", item["images"])
            for name, item in facts["pixels"].items()]))


def main(
    shards: Annotated[Path, typer.Argument(metavar="SET", help="shard set to look into")],
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    pixels: Annotated[bool, typer.Option("--pixels", help="count pixels per class; decodes "
                                                          "all masks")] = False,
    sheet: Annotated[Path | None, typer.Option(help="draw sample pictures into this PNG")] = None,
    images: Annotated[int, typer.Option(min=1, help="pictures on the sheet")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="another seed, other pictures")] = 0,
    workers: Annotated[int, typer.Option(
        min=0, help="processes for --pixels; 0 = all cores")] = 0,
) -> int:
    """Print what a shard set holds: kind, images, sizes, images per class, provenance.

    --sheet draws a random sample with ids, tags and masks.

    Example: python -m data_tools.inspect data/voc_train_aug --sheet sample.png
    """
    opened = ShardSet(shards)
    facts = describe(opened)
    if pixels:
        facts["pixels"] = count_pixels(opened, workers)
    if sheet is not None:
        from data_tools.sheet import write_sheet  # loads a font

        facts["sheet"] = write_sheet(opened, sheet, images, seed)
    if as_json:
        print(json.dumps(facts))
        return 0
    console = Console()
    show(facts, console)
    if sheet is not None:
        console.print(f"{sheet}: {len(facts['sheet'])} of {len(opened)} images", highlight=False,
                      markup=False)
    return 0


if __name__ == "__main__":
    command(main)
