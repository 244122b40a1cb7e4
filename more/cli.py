"""`python -m more COMMAND`: the one command line. Commands import what they need when they run."""

from __future__ import annotations

import importlib
import sys

import typer

from more.commands.bench import app as bench_app
from more.commands.options import MEASURE, app
from more.errors import UserError, from_loading, from_system
from more.progress import console

# They register commands; `options.ORDER` is the order in which help lists them.
for part in ("run", "train", "config_doctor", "masks", "tune_masks", "scores", "export_report"):
    importlib.import_module(f"more.commands.{part}")
app.add_typer(bench_app, name="bench", rich_help_panel=MEASURE)


def main(program: typer.Typer = app) -> None:
    """Run a command line; what the user can mend prints a message and exits with 2.

    Args:
        program: `more` itself, or another one whose errors are told in the same way.
    """
    try:
        program()
    except (UserError, OSError, RuntimeError) as error:
        known = (error if isinstance(error, UserError) else
                 from_system(error) if isinstance(error, OSError) else from_loading(error))
        if known is None:
            raise
        console.print(f"error: {known}", highlight=False, markup=False, style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
