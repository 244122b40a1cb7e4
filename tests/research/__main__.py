"""`python -m tests.research NAME`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

# As `python -m more` does, before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer  # noqa: E402

from more import cli  # noqa: E402
from more.commands.options import AsJson, Overrides, one_of  # noqa: E402

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
                  pretty_exceptions_enable=False,
                  help="Measurements for those who work on MoRe itself.")
Classes = Annotated[str, typer.Option(help="numbers of classes, separated by commas")]
Patches = Annotated[int, typer.Option(min=7, help="patches on a side of the image")]
BatchSize = Annotated[int, typer.Option(min=1, help="images in a batch")]
Dim = Annotated[int, typer.Option(min=1, help="channels of tokens and patches")]
Rounds = Annotated[int, typer.Option(min=1, help="rounds that count")]
Device = Annotated[str, typer.Option(help="cpu (one thread), cuda or cuda:N")]


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
def train(
    config: Annotated[Path | None, typer.Option(
        "--config", help="settings file [default: configs/shapes_micro.py at 64 px]")] = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="updates in a block")] = 20,
    rounds: Rounds = 5,
    step_only: Annotated[bool, typer.Option(
        "--step-only", help="leave out DeepSpeed and checkpoints")] = False,
    oracle: Annotated[str, typer.Option(
        help="also time the straightforward step of tests/oracles: research (loops over images, "
             "classes and views), positions (also over pairs and pixels), none")] = "none",
    backend: Annotated[str, typer.Option(
        "--compile", help="also time a step with compiled blocks, e.g. inductor")] = "",
    picture: Annotated[Path | None, typer.Option(
        "--profile", help="file for a picture of the step by part, e.g. step.png")] = None,
    as_json: AsJson = False,
) -> None:
    """`more bench train`, and beside it the straightforward step, whose terms must be equal.

    Example: `python -m tests.research train --config configs/shapes_micro.py --oracle research
    --profile step.png`
    """
    one_of("--oracle", oracle, ("none", "research", "positions"))
    from more.bench.bench_train import StepChoice, run
    from tests.research.plain_step import plain_step

    run(config, steps, rounds, as_json, overrides or [],
        StepChoice(step_only, plain_step(oracle), backend, picture))


@app.command()
def losses(
    classes: Classes = "20,80",
    patches: Patches = 28,
    batch: BatchSize = 4,
    dim: Dim = 768,
    rounds: Rounds = 5,
    growth: Annotated[bool, typer.Option(
        help="time against classes and patches instead, with fitted exponents")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG file for --growth")] = None,
    oracle: Annotated[str, typer.Option(
        help="plain formulas of tests/oracles: research (loops over images and classes, URE over "
             "its patches too), positions (CRE also over all patches, URE over all its pairs)"
    )] = "research",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """URE, CRE, PTC and the graph's layer against their formulas in plain loops.

    Example: `python -m tests.research losses --classes 20,80`
    """
    one_of("--oracle", oracle, ("research", "positions"))
    from tests.research.losses import run

    run(classes, patches, batch, dim, rounds, growth, plot, device, as_json,
        oracle == "positions")


@app.command()
def labels(
    classes: Classes = "20,80",
    patches: Patches = 28,
    batch: BatchSize = 4,
    rounds: Rounds = 5,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Label maps and PAR-refined labels at 16 pixels a patch, against plain formulas.

    Example: `python -m tests.research labels --classes 20`
    """
    from tests.research.labels import run

    run(classes, patches, batch, rounds, device, as_json)


@app.command(name="filter")
def filter_command(
    classes: Classes = "20,80",
    patches: Patches = 28,
    batch: BatchSize = 4,
    rounds: Rounds = 3,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """The dense energy at 8 pixels a patch, value and gradient, by both filters.

    Example: `python -m tests.research filter --classes 20`
    """
    from tests.research.filter import run

    run(classes, patches, batch, rounds, device, as_json)


@app.command()
def modules(
    data: Annotated[Path, typer.Argument(help="shard set of the shapes, at least 8 images")],
    as_json: AsJson = False,
) -> None:
    """Files of the package whose functions a training step and a pseudo-label enter."""
    from tests.research.modules_entered import all_files

    found_by_work = all_files(data)
    if as_json:
        print(json.dumps(found_by_work, indent=1))
        return
    for work, found in found_by_work.items():
        print(f"{work} enters {len(found)} files:", *found, sep="\n  ")


if __name__ == "__main__":
    cli.main(app)
