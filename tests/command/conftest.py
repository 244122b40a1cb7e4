"""Commands run inside the test process: fast, and every way out is seen as a user sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from data_tools import coco, folder, inspect, merge, split, verify, voc
from data_tools.tool import command
from more.cli import main
from tests.refinement.sets import make_sets

TOOLS = {module.__name__.split(".")[-1]: module.main
         for module in (coco, folder, inspect, merge, split, verify, voc)}


class Ended(NamedTuple):
    """How a command ended: exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Ended]:
    """`run("more", "refine", …)` or `run("voc", …)`; an exception that gets out fails the test."""

    def call(program: str, *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main() if program == "more" else command(TOOLS[program])
        return Ended(ended.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    """Seeds and images of three pictures with four classes."""
    return make_sets(tmp_path_factory.mktemp("sets"), count=3)


def refused(ended: Ended, *words: str) -> bool:
    """Exit code 2, a message with `words` and a remedy."""
    message = " ".join(ended.err.split())
    assert ended.code == 2, ended
    assert "fix:" in message, ended.err
    for word in words:
        assert word in message, ended.err
    return True
