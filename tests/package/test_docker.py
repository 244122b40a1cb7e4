"""launch/Dockerfile read without docker: instructions, sources, what is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

FILE = ROOT / "launch" / "Dockerfile"
KNOWN = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of each instruction: comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


STEPS = instructions(FILE.read_text(encoding="utf-8"))


def rest(name: str) -> list[str]:
    """What follows an instruction, each time it is there."""
    return [text for step, text in STEPS if step == name]


def test_every_instruction_is_known_and_the_base_is_an_argument():
    assert {name for name, _ in STEPS} <= KNOWN
    assert STEPS[0][0] == "ARG" and re.fullmatch(r"BASE=python:3\.\d+-slim-\w+", STEPS[0][1])
    assert rest("FROM") == ["${BASE}"]


def test_every_source_exists_and_comes_in_before_it_is_used():
    copied = [text.split() for text in rest("COPY")]
    for *sources, _ in copied:
        assert all((ROOT / source).exists() for source in sources), sources
    before = STEPS[:next(n for n, step in enumerate(STEPS) if "setup.sh'" in step[1])]
    present = {source for name, text in before if name == "COPY" for source in text.split()[:-1]}
    # What setup.sh and the build of the project read (pyproject.toml names the last three).
    assert {"launch/setup.sh", "requirements.txt", "pyproject.toml", "README.md", "LICENSE",
            "more/__init__.py"} <= present
    assert rest("COPY")[-1] == ". ."


def test_packages_of_the_system_come_without_recommendations_and_lists():
    runs = [text for text in rest("RUN") if "apt-get" in text]
    calls = [call for text in runs for call in re.findall(r"apt-get install[^&|;}]*", text)]
    assert len(calls) == 2
    assert all("--no-install-recommends" in call and " -y " in call for call in calls)
    assert all("apt-get update" in text and text.endswith("rm -rf /var/lib/apt/lists/*")
               for text in runs)
    assert not re.search(r"\bsudo\b|curl|wget|:latest|apt-get (dist-)?upgrade", str(STEPS))


def test_the_image_is_more():
    assert json.loads(rest("ENTRYPOINT")[0]) == ["python", "-m", "more"]
    environment = " ".join(rest("ENV"))
    assert "MORE_VENV=/opt/more" in environment and "PATH=/opt/more/bin:$PATH" in environment


def test_bash_takes_the_commands(tmp_path):
    """Each RUN in bash's syntax check; a Dockerfile is not tried before somebody builds it."""
    for text in rest("RUN"):
        done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, (text, done.stderr)


def test_data_runs_and_environments_stay_out_of_the_image():
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    own = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {".git", "**/__pycache__", "**/.*_cache"} <= set(ignored)
    for name in (".venv", ".hypothesis", ".cache", "data", "quickstart", "checkpoints/*",
                 "!checkpoints/README.md"):
        assert name in own and name in ignored


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", FILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
