"""Every command line of README.md and the pages is run here, or it is said what it needs.

The lines run in a folder that holds what they name (`page_world.py`), each in a copy of its own.
Trainings are of a micro network and two updates; `page_typing.py` says what else is made smaller.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.command.page_lines import EXTRAS, NEEDS, SLOW, command_lines, matches, reason
from tests.command.page_typing import Typist
from tests.command.page_world import make_world
from tests.conftest import ROOT
from tests.test_readme import commands

LINES = command_lines()
RUN_HERE = [pytest.param(line, id=line, marks=[pytest.mark.slow] if line.startswith(SLOW) else [])
            for line in LINES if reason(line) is None]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The folder as it is before a line is typed."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def typist(world, tmp_path, monkeypatch) -> Typist:
    """Types in a copy of the folder."""
    copy = shutil.copytree(world, tmp_path / "here", symlinks=True)
    return Typist(copy, monkeypatch)


@pytest.mark.parametrize("line", RUN_HERE)
def test_a_line_does_its_work(typist, line):
    for part, package in EXTRAS.items():
        if part in line:
            pytest.importorskip(package)
    assert typist.line(line) == 0, LINES[line]


def test_a_line_that_fails_or_leaves_its_result_out_is_seen(typist, monkeypatch):
    assert typist.line("python -m more evaluate RUN/masks/none --data SET") == 2
    with pytest.raises(AssertionError, match="NEEDS"):
        typist.line("curl https://example.org")
    monkeypatch.setattr(typist, "module", lambda words: 0)
    with pytest.raises(AssertionError, match="page.html"):
        typist.line("python -m more report --run RUN --out page.html")
    with pytest.raises(AssertionError, match="RUN/two"):
        typist.line("bash launch/train.sh CONFIG --train SET --masks MASKS --init RUN")


def test_every_command_of_the_pages_is_among_the_lines():
    """Those that `tests/test_readme.py` finds, whose options it holds; `$NAME` is put in here."""
    ends = [rest.partition("$")[0].split() for _, _, rest in commands()]
    lost = [end for end in ends if not any(" ".join(end) in line for line in LINES)]
    assert len(ends) > 100 and not lost


def test_every_reason_belongs_to_a_line():
    assert [entry for entry in NEEDS if not any(matches(line, entry) for line in LINES)] == []
    assert [start for start in SLOW if not any(line.startswith(start) for line in LINES)] == []


def test_tests_that_reasons_name_exist():
    named = {path for why in NEEDS.values() for path in re.findall(r"tests/[\w/]+\.py", why)}
    assert len(named) > 8 and all((ROOT / path).is_file() for path in named)
