"""What all commands share: the program itself and options of one meaning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from more import __version__
from more.device import launched_world
from more.errors import UserError

app = typer.Typer(
    name="more", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
    help="Weakly supervised segmentation from tags to masks: "
         "**train** → **localize** → **refine** → **evaluate** → **export** → **report**.")

# Under `torchrun -m more …` Python before 3.12 takes `--run` for a short form of torchrun's own
# `--run-path` and stops; `--run-dir` is the same option under a name that it leaves alone.
RUN_NAMES = ("--run", "--run-dir")
Run = Annotated[Path, typer.Option(*RUN_NAMES, help="run folder, e.g. checkpoints/voc12_vit_b")]
Data = Annotated[Path, typer.Option("--data", help="shard set with the images")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", help="section.key=value; repeatable")]
Checkpoint = Annotated[str, typer.Option(
    help="latest, best, step-NNNNNN of the run, or a checkpoint folder")]
Palette = Annotated[str, typer.Option(
    help="colours of the classes: voc, or okabe-ito, which colour-blind people tell apart")]
AsJson = Annotated[bool, typer.Option("--json", help="print figures as JSON on stdout")]

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
