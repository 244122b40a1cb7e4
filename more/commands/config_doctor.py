"""What comes before a training: its settings and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from more.commands.options import RUN_NAMES, AsJson, Overrides, app
from more.errors import UserError


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(
        help="settings: a file, or the name of a recipe")] = None,
    overrides: Overrides = None,
    list_recipes: Annotated[bool, typer.Option(
        "--list", help="name the recipes that are here, and what each is")] = False,
    explain: Annotated[bool, typer.Option(help="with the meaning of every setting")] = False,
    stage: Annotated[int, typer.Option(min=1, max=2, help="2: as `more train --masks` has them"
                                       )] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the resolved settings of a file or recipe, or list the recipes.

    Example: `python -m more config configs/voc12_vit_b.py --set optim.lr=1e-4 --explain`

    `python -m more config --list`
    """
    import json

    from more.config.load import flatten, load_config, to_dict

    if list_recipes == (file is not None):
        raise UserError("more config: " + ("a file and --list together" if list_recipes else
                                           "which settings?"),
                        "give either a file or recipe, or --list")
    if list_recipes:
        _list_recipes(as_json)
        return
    settings = load_config(file, overrides or [], stage)
    if as_json:
        print(json.dumps(to_dict(settings), indent=1))
        return
    for key, value, meaning in flatten(settings):
        print(f"{key} = {value!r}" + (f"    # {meaning}" if explain else ""))


def _list_recipes(as_json: bool) -> None:
    """Print names, files and purposes of all recipes."""
    import json

    from more.config.recipes import LAUNCH, recipes, summary

    found = [{"name": name, "file": str(file), "about": summary(file)}
             for name, file in recipes().items()]
    if as_json:
        print(json.dumps({"recipes": found, "launch": str(LAUNCH)}, indent=1))
        return
    for item in found:
        print(f"{item['name']}  ({item['file']})\n    {item['about']}")
    print(f"scripts to train with (train.sh, nodes.sh, quickstart.sh): {LAUNCH}")


@app.command()
def doctor(
    run: Annotated[Path, typer.Option(
        *RUN_NAMES, help="run folder, made or not")] = Path("checkpoints"),
    quick: Annotated[bool, typer.Option(
        "--quick", help="leave out the two processes that meet")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: packages, devices, DeepSpeed, disk, locks, clock, two processes.

    Example: `python -m more doctor --run checkpoints/shapes`
    """
    from more.doctor.diagnosis import doctor as job

    raise typer.Exit(job(run, quick, as_json))
