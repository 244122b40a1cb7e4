"""What comes before a training: its settings and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from more.commands.next_lines import line
from more.commands.options import (
    HOW,
    LOOK,
    PLACES,
    RUN_NAMES,
    SHOWN,
    AsJson,
    Overrides,
    app,
    show_json,
    tell_next,
)
from more.errors import UserError


@app.command(rich_help_panel=LOOK)
def config(
    file: Annotated[Path | None, typer.Argument(
        help="settings: a file, or the name of a recipe")] = None,
    overrides: Overrides = None,
    list_recipes: Annotated[bool, typer.Option(
        "--list", help="name the recipes that are here, and what each is",
        rich_help_panel=SHOWN)] = False,
    explain: Annotated[bool, typer.Option(
        help="with the meaning of every setting", rich_help_panel=SHOWN)] = False,
    stage: Annotated[int, typer.Option(
        min=1, max=2, help="2: as `more train --masks` has them", rich_help_panel=HOW)] = 1,
    as_json: AsJson = False,
) -> None:
    """Print the resolved settings of a file or recipe, or list the recipes.

    Example: `python -m more config configs/voc12_vit_b.py --set optim.lr=1e-4 --explain`

    `python -m more config --list`
    """
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
        show_json(to_dict(settings))
        return
    for key, value, meaning in flatten(settings):
        print(f"{key} = {value!r}" + (f"    # {meaning}" if explain else ""))
    sets = [word for text in overrides or [] for word in ("--set", text)]
    masks = ["--masks", "MASKS"] if stage == 2 else []
    tell_next(line("train", file, "--train", "SET", *masks, *sets, "--dry-run"))


def _list_recipes(as_json: bool) -> None:
    """Print names, files and purposes of all recipes."""
    from more.config.recipes import LAUNCH, recipes, summary

    found = [{"name": name, "file": str(file), "about": summary(file)}
             for name, file in recipes().items()]
    if as_json:
        show_json({"recipes": found, "launch": str(LAUNCH)})
        return
    for item in found:
        print(f"{item['name']}  ({item['file']})\n    {item['about']}")
    print(f"scripts to train with (train.sh, nodes.sh, quickstart.sh): {LAUNCH}")
    tell_next(line("config", "NAME", "--explain"))


@app.command(rich_help_panel=LOOK)
def doctor(
    run: Annotated[Path, typer.Option(
        *RUN_NAMES, help="run folder, made or not", rich_help_panel=PLACES)] = Path("checkpoints"),
    quick: Annotated[bool, typer.Option(
        "--quick", help="leave out the two processes that meet", rich_help_panel=HOW)] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: packages, devices, DeepSpeed, disk, locks, clock, two processes.

    Example: `python -m more doctor --run quickstart/run`
    """
    from more.doctor.diagnosis import doctor as job

    code = job(run, quick, as_json)
    tell_next("mend what is a problem above, then the same command" if code else
              line("run", "PICTURES", "--run", run), as_json)
    raise typer.Exit(code)
