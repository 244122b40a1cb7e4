"""What all commands share: the program, panels of its help, options of one meaning, the end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from more import __version__
from more.device import launched_world
from more.errors import UserError
from more.progress import NEXT_LINES, Tally, say

# Panels of commands, and of a command's options.
START, MASKS, LOOK, MEASURE = "Start", "Masks", "Look", "Measure"
PLACES, HOW, SPEED, SHOWN = "Data and places", "Settings", "Processes and speed", "Output"
ORDER = ("run", "train", "predict", "localize", "refine", "evaluate", "export", "export-weights",
         "report", "runs", "scores", "results", "config", "doctor", "tune", "bench")


class _Ordered(TyperGroup):
    """Lists commands by what is done first, and not by the file that registers them."""

    def list_commands(self, context: Any) -> list[str]:
        """Names of the commands; new ones without a place come last."""
        places = {name: place for place, name in enumerate(ORDER)}
        return sorted(self.commands, key=lambda name: places.get(name, len(places)))


app = typer.Typer(
    name="more", cls=_Ordered, no_args_is_help=True, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
    help="Weakly supervised segmentation from tags to masks: **run** does it all in one command; "
         "its stages are **train** → **localize** → **refine** → **evaluate** → **export** → "
         "**report**.\n\nExample: `python -m more run photos --run checkpoints/photos`, where "
         "photos holds pictures and tags.csv")

# Under `torchrun -m more …` Python before 3.12 takes `--run` for a short form of torchrun's own
# `--run-path` and stops; `--run-dir` is the same option under a name that it leaves alone.
RUN_NAMES = ("--run", "--run-dir")
Run = Annotated[Path, typer.Option(
    *RUN_NAMES, rich_help_panel=PLACES, help="run folder, e.g. checkpoints/voc12_vit_b")]
Data = Annotated[Path, typer.Option(
    "--data", rich_help_panel=PLACES, help="shard set with the images")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", rich_help_panel=HOW, help="section.key=value; repeatable")]
Checkpoint = Annotated[str, typer.Option(
    rich_help_panel=PLACES, help="latest, best, step-NNNNNN of the run, or a checkpoint folder")]
Palette = Annotated[str, typer.Option(
    rich_help_panel=SHOWN,
    help="colours of the classes: voc, or okabe-ito, which colour-blind people tell apart")]
AsJson = Annotated[bool, typer.Option(
    "--json", rich_help_panel=SHOWN, help="print figures as JSON on stdout")]

LOADED = {"train": "PyTorch and DeepSpeed", "doctor": "PyTorch and DeepSpeed",
          "localize": "PyTorch", "predict": "PyTorch", "export-weights": "PyTorch",
          "bench": "PyTorch", "report": "matplotlib"}
"""What commands import that takes seconds; they say so at once."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option(
        "--version", help="print the version", callback=_print_version, is_eager=True)] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    # The deepspeed launcher puts --local_rank before the command; the environment has it too.
    del version, local_rank
    _say_loading(context.invoked_subcommand or "")


def _say_loading(command: str) -> None:
    """One line on stderr before long imports, so that the start is not silent; on rank 0."""
    asks_help = any(word in ("-h", "--help") for word in sys.argv[1:])
    if command in LOADED and "torch" not in sys.modules and not asks_help \
            and launched_world()[0] == 0:
        print(f"loading {LOADED[command]} …", file=sys.stderr, flush=True)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError when an option has another value than the allowed ones."""
    if value not in allowed:
        raise UserError(f"{option} {value}: unknown", f"choose one of {', '.join(allowed)}")


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout, where nothing else is printed then."""
    print(json.dumps(value, indent=1, allow_nan=False))


def tell_next(command: str, as_json: bool = False) -> None:
    """Print what to do next as the last line, on stderr; nothing with `--json`."""
    if not as_json and os.environ.get(NEXT_LINES) != "off":
        say(f"next: {command}")


def end(tally: Tally, command: str, as_json: bool = False, **facts: Any) -> None:
    """Print the counts of a job and what to do next, and leave with the job's exit code.

    Args:
        tally: counts of the job.
        command: the next command line, for a job without failures; "" names none.
        as_json: counts as JSON on stdout, and no next line.
        facts: further values for the JSON.

    Raises:
        typer.Exit: always.
    """
    tell(tally, command, as_json, **facts)
    raise typer.Exit(tally.exit_code)


def tell(tally: Tally, command: str, as_json: bool = False, **facts: Any) -> None:
    """As `end`, but for leaving: for jobs that have something to do after it."""
    tally.print()
    if as_json:
        show_json({**tally.to_json(), **{name: str(value) if isinstance(value, Path) else value
                                         for name, value in facts.items()}})
    elif tally.failures:
        tell_next("repair or replace what failed, then the same command: it tries these alone")
    elif command:
        tell_next(command)
