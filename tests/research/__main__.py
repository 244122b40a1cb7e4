"""`python -m tests.research NAME`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measurements for those who work on MoRe itself.")


@app.callback()
def main() -> None:
    """Measurements for those who work on MoRe itself."""


@app.command()
def step_count(
    recipes: Annotated[list[Path] | None, typer.Argument(
        help="settings files [default: VOC and COCO with ViT-B]")] = None,
    overrides: Annotated[list[str] | None, typer.Option(
        "--set", help="KEY=VALUE, repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    casts: Annotated[bool, typer.Option("--casts", help="count casts alone, under DeepSpeed on the "
                                        "CPU at 112 px: bf16 autocast and bf16 weights")] = False,
    collectives: Annotated[bool, typer.Option(
        "--collectives", help="count collectives alone, of one rank of 8")] = False,
) -> None:
    """Operations, casts, waits and copies of an update with all terms, at 448 px and 8 images."""
    from tests.research.casts import casts_of_recipes
    from tests.research.collectives import collectives_of_recipes
    from tests.research.step_count import counted, settings

    found, recipes = {}, recipes or [Path("configs/voc12_vit_b.py"),
                                     Path("configs/coco14_vit_b.py")]
    if casts:
        found = casts_of_recipes(recipes, overrides or ())
    if collectives:
        found = collectives_of_recipes(recipes, overrides or ())
    for recipe in () if casts or collectives else recipes:
        count, terms = counted(settings(recipe, overrides or ()))
        found[recipe.stem] = {
            "operations": sum(count.operations.values()), "casts": count.casts,
            "waits": sum(count.waits.values()), "uploads": sum(count.uploads.values()),
            "blocking uploads": sum(count.blocking.values()), "GB written": count.bytes / 1e9,
            "of waits": dict(count.waits),
            "of uploads": {str(list(shape)): n for shape, n in count.uploads.items()},
            "of operations": dict(count.operations.most_common(25)), "terms": terms}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.6g}" if isinstance(value, float | int)
                                      else f"\n  {key}: {value}" for key, value in figures.items()))


@app.command()
def modules(
    data: Annotated[Path, typer.Argument(help="shard set of the shapes, at least 8 images")],
) -> None:
    """Files of the package whose functions one training step enters."""
    from tests.research.modules_entered import step_files

    found = step_files(data)
    print(f"a training step enters {len(found)} files:", *found, sep="\n  ")


if __name__ == "__main__":
    app()
