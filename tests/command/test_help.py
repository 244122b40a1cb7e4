"""Help in panels, examples that work on the quickstart's folders, completion of the shell."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.main import get_command

from more.cli import app
from more.commands.options import HOW, LOOK, MASKS, MEASURE, ORDER, PLACES, SHOWN, SPEED, START

PROGRAM = get_command(app)
OPTION_PANELS = {PLACES, HOW, SPEED, SHOWN}


def panel_of(name: str) -> str | None:
    """The panel that lists a command."""
    return PROGRAM.commands[name].rich_help_panel


def test_every_command_has_its_place_and_panel():
    assert set(ORDER) == set(PROGRAM.commands)
    assert list(PROGRAM.list_commands(None)) == list(ORDER)
    panels = {panel: [name for name in ORDER if panel_of(name) == panel]
              for panel in (START, MASKS, LOOK, MEASURE)}
    assert panels == {
        START: ["run", "train", "predict"],
        MASKS: ["localize", "refine", "evaluate", "export", "export-weights"],
        LOOK: ["report", "runs", "scores", "results", "config", "doctor"],
        MEASURE: ["tune", "bench"]}


def test_the_help_shows_the_panels_in_order(run):
    shown = run("more", "--help").out
    places = [shown.index(f" {panel} ─") for panel in (START, MASKS, LOOK, MEASURE)]
    assert places == sorted(places)


@pytest.mark.parametrize("name", [name for name in ORDER if name != "bench"])
def test_every_option_is_in_a_panel(name):
    options = [param for param in PROGRAM.commands[name].params
               if param.param_type_name == "option" and param.name != "help"]
    assert not [param.opts for param in options if param.rich_help_panel not in OPTION_PANELS]


@pytest.mark.parametrize("name", [name for name in ORDER if name not in ("bench", "config")])
def test_the_first_example_uses_the_quickstarts_folders_and_known_options(name):
    text = " ".join(PROGRAM.commands[name].help.split())
    example = re.search(r"Example: `python -m more (.*?)`", text).group(1)
    assert example.split()[0] == name and "quickstart" in example
    paths = re.findall(r"quickstart[\w/.]*", example)
    assert all(re.fullmatch(r"quickstart(/(run|data)(/.*)?)?", path) for path in paths)
    known = {option for param in PROGRAM.commands[name].params
             for option in (*param.opts, *param.secondary_opts)}
    assert {word for word in example.split() if word.startswith("--")} <= known


def test_completion_can_be_had_for_the_script():
    code = "import sys; sys.argv = ['more-wsss', '--show-completion', 'bash']; " \
           "from more.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path),
                               "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.returncode == 0, done.stderr
    assert "more-wsss" in done.stdout and "_MORE_WSSS_COMPLETE=complete_bash" in done.stdout
