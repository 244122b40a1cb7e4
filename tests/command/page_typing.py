"""Types the lines of the pages: in this process, trainings in one that is forked."""

from __future__ import annotations

import importlib
import io
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_tools.tool import command
from more.cli import main
from more.jobs import driver
from more.pipeline import run_stages
from tests.conftest import ROOT
from tests.processes import run

# Place-holders that are no names of files in the folder: CONFIG and FILE are recipes.
PUT_IN = {"CONFIG": "configs/shapes_micro.py", "FILE": "configs/shapes_micro.py"}
# Words added to lines that begin so, that they take a second: the last value of an option counts.
MICRO = "--config configs/shapes_micro.py --rounds 1 --steps 1"
SMALLER = {
    "data_tools.shapes": "--images 8 --val 4 --size 64",
    "data_tools.": "--workers 1",
    "more doctor": "--quick",
    "more bench data": "--images 16 --crop 64 --rounds 1",
    "more bench train": MICRO,
    "more bench refine": "--images 1 --rounds 1",
    "more train configs/shapes_micro.py --train SET --dry-run --ranks 8":
        "--set train.scale_to=16",
    "tests.research train": MICRO,
    "tests.research train --step-only": "--set model.backbone=custom --set data.crop=64",
    "tests.research losses": "--classes 3 --patches 7 --batch 1 --dim 8 --rounds 1",
    "tests.research labels": "--classes 3 --patches 7 --batch 1 --rounds 1",
    "tests.research filter": "--classes 3 --patches 7 --batch 1 --rounds 1",
    "tests.research step-count": "configs/shapes_micro.py",
}
HELP = ["bash", "launch/train.sh"]
OURS = ("more", "data_tools.", "tests.research")
OUTPUTS = ("--out", "--save", "--sheet", "--strip", "--plot", "--profile")
# Which word of a tool is the folder that it writes.
PLACES = {"folder": 2, "voc": 2, "split": 2, "coco": 3, "merge": 1, "shapes": 1}
# Beginnings of what runs in a process of its own: it leaves settings of libraries behind, or it
# needs workers that are processes.
FORKED = ("more train", "more bench", "more doctor", "tests.research", "data_tools.coco")


def outputs(words: list[str]) -> list[Path]:
    """Files and folders that a line names as its results, from the words after `python -m`."""
    named = [Path(value) for option, value in zip(words, words[1:], strict=False)
             if option in OUTPUTS or (option == "--run" and words[1] in ("train", "run"))]
    if place := PLACES.get(words[0].removeprefix("data_tools.")):
        named.append(Path(words[place]))
    if words[:2] == ["more", "train"] and "--init" in words and "--run" not in words:
        named.append(Path(words[words.index("--init") + 1]) / "two")
    return named


def remove(path: Path) -> None:
    """Take away what is there, of a link the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


class Typist:
    """Runs lines in a folder.

    Args:
        root: the folder.
        patch: undone by the caller.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root, self.patch = root, patch
        patch.chdir(root)
        patch.setenv("WANDB_MODE", "offline")
        # A thread in place of a worker process, which would take seconds to start.
        patch.setattr(driver, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
        patch.setattr(run_stages, "start_stage",
                      lambda stage, ranks: self.module(list(stage.words)))

    def line(self, line: str) -> int:
        """Run a line of a page; its exit code.

        What it names as its results is taken away before, and must be there afterwards.

        Raises:
            AssertionError: it starts something else than the project, or made no result.
        """
        first, piped, line = line.rpartition(" | ")
        words = [PUT_IN.get(word, word) for word in shlex.split(line)]
        if words[:2] == HELP and len(words) > 2:
            words = ["python", "-m", "more", "train", *words[2:]]  # on one device, nothing else
        if words[0] in ("more", "tests.research"):
            words = ["python", "-m", *words]
        if words == HELP or words[0] == "touch":
            return subprocess.run(words, cwd=ROOT if words == HELP else self.root,
                                  check=False).returncode
        assert words[:2] == ["python", "-m"] and words[2].startswith(OURS), (
            "a new kind of line: have it run here, or give it a reason in page_lines.NEEDS")
        if piped:
            typed = subprocess.run(shlex.split(first), cwd=self.root, capture_output=True,
                                   check=True).stdout
            self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        made = outputs(words[2:])
        for path in made:
            remove(self.root / path)
        code = self.module(words[2:])
        missing = [str(path) for path in made if not (self.root / path).exists()]
        assert code or not missing, missing
        return code

    def module(self, words: list[str]) -> int:
        """Run `python -m WORDS`; its exit code."""
        added = [more for start, more in SMALLER.items() if " ".join(words).startswith(start)]
        words = [*words, *" ".join(added).split()]
        if " ".join(words).startswith(FORKED):
            done = run(*words, cwd=self.root)
            print(done.stdout, done.stderr)
            return done.returncode
        self.patch.setattr(sys, "argv", words)
        try:
            if words[0].startswith("data_tools."):
                command(importlib.import_module(words[0]).main)
            else:
                main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0
