"""Every line of the page "From your tool" converts a small export of that form."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
import typer
from typer.main import get_command

from more.data.shards.reader import ShardSet
from tests.conftest import ROOT
from tests.data_tools.tool_exports import EXPORTS, THIRD

PAGE = (ROOT / "data_tools/README.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| [^|]+ \| `python -m data_tools\.(\w+) ([^`]+)` \|$", PAGE, re.M)


def run_line(module: str, arguments: str) -> int:
    """Run a command line of a data tool in this process; its exit code."""
    tool = typer.Typer(add_completion=False)
    tool.command()(importlib.import_module(f"data_tools.{module}").main)
    return get_command(tool).main([*shlex.split(arguments), "--workers", "1"],
                                  standalone_mode=False)


def test_the_page_has_every_tool():
    assert [name for name, _, _ in ROWS] == list(EXPORTS)


@pytest.mark.parametrize(("name", "module", "arguments"), ROWS, ids=[row[0] for row in ROWS])
def test_an_export_is_converted_by_the_command_of_the_page(name, module, arguments, tmp_path,
                                                           monkeypatch):
    make, classes, tags, masks = EXPORTS[name]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_line(module, arguments) == 0
    found = ShardSet("SET")
    assert list(found.class_names) == classes
    assert [[classes[k] for k in found.tags[index].nonzero()[0]]
            for index in range(len(found))] == tags
    for index in range(len(found)):
        mask = found.mask(index)
        assert (mask is not None) == (masks is not False)
        if masks:  # the object in the upper third, nothing below
            assert (mask[:THIRD] == classes.index(tags[index][0]) + 1).all()
            assert not mask[THIRD:].any()
