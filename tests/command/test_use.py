"""Commands as a newcomer types them: defaults, help, what is printed at the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from more import __version__
from more.cli import app
from more.data.shards.reader import ShardSet
from tests.command.conftest import TOOLS
from tests.data.sets import small_set
from tests.data_tools.layout import voc_folder
from tests.launch.project import REQUIREMENTS, installed_mark

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(item.name or item.callback.__name__ for item in app.registered_commands)


def test_refine_needs_no_options_and_takes_settings_without_a_file(run, sets, tmp_path):
    seeds, data = sets
    first = run("more", "refine", seeds, "--data", data, "--out", tmp_path / "a")
    assert first.code == 0 and "done 3, skipped 0, failed 0" in first.err
    again = run("more", "refine", seeds, "--data", data, "--out", tmp_path / "a")
    assert again.code == 0 and "done 0, skipped 3, failed 0" in again.err
    other = run("more", "refine", seeds, "--data", data, "--out", tmp_path / "b", "--workers", 1,
                "--set", "crf.iterations=2")
    assert other.code == 0
    assert ShardSet(tmp_path / "a").manifest.provenance["crf"]["iterations"] == 10
    assert ShardSet(tmp_path / "b").manifest.provenance["crf"]["iterations"] == 2


def test_verify_counts_shards_and_names_each_problem_once(run, tmp_path):
    folder = small_set(tmp_path / "set")
    ended = run("verify", folder)
    assert ended.code == 0 and "3 of 3 shards are sound, 0 problems" in ended.err
    shard = folder / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    place = data.find(ShardSet(folder).blob("image", 7)[-60:-20])
    data[place] ^= 1
    shard.write_bytes(data)
    ended = run("verify", folder)
    assert ended.code == 1 and "2 of 3 shards are sound, 2 problems" in ended.err
    assert "shard-00001.h5 'image_7': image of 'image_7' is damaged" in ended.err
    assert "fix:" in ended.err


def test_a_bad_image_holds_its_shard_back_and_the_remedy_is_named(run, tmp_path):
    root = voc_folder(tmp_path / "voc", 3)
    (root / "JPEGImages" / "id1.jpg").write_bytes(b"junk")
    ended = run("voc", root, tmp_path / "set", "--split", "train", "--workers", 1)
    assert ended.code == 1 and "id1.jpg: cannot be decoded" in ended.err
    assert "its 3 images wait" in ended.err and "--skip-bad" in ended.err


def test_a_csv_with_a_byte_order_mark_is_read(run, tmp_path):
    root = voc_folder(tmp_path / "voc", 3)
    text = (root / "tags.csv").read_text()
    (root / "tags.csv").write_text(text, encoding="utf-8-sig")
    ended = run("voc", root, tmp_path / "set", "--split", "train", "--tags", root / "tags.csv",
                "--workers", 1)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(run, name):
    ended = run("more", name, "--help")
    assert ended.code == 0 and "Example:" in ended.out and f"more {name}" in ended.out


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_the_help_of_every_data_tool_has_an_example(run, name):
    ended = run(name, "-h")
    assert ended.code == 0 and f"Example: python -m data_tools.{name}" in ended.out


@pytest.mark.parametrize(("ranks", "expected"), [
    ("1", "python -m more train a.py --train set --run dir"),
    ("2", "torchrun --standalone --nproc_per_node=2 -m more -- train a.py --train set --run dir")])
def test_the_launch_script_starts_the_ranks(tmp_path, ranks, expected):
    """`--` keeps torchrun from taking `--run` for its own `--run-path`."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "torchrun"):
        (venv / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    launch = tmp_path / "launch"
    shutil.copytree(ROOT / "launch", launch)
    for name in REQUIREMENTS:
        shutil.copy(ROOT / name, tmp_path)
    (venv / ".requirements").write_text(installed_mark(ROOT) + "\n")
    done = subprocess.run(
        ["bash", launch / "train.sh", "a.py", "--train", "set", "--run", "dir"], text=True,
        capture_output=True, env={"PATH": "/usr/bin:/bin", "RANKS": ranks, "MORE_VENV": "venv"})
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="fixed in Python 3.12's argparse")
def test_torchrun_still_needs_the_separator():
    """When this fails, `launch/train.sh` and the `--run-dir` spelling can go."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["-m", "more", "train", "a.py", "--run", "dir"])
    parsed = parser.parse_args(["-m", "more", "--", "train", "a.py", "--run", "dir"])
    assert parsed.training_script_args[-2:] == ["--run", "dir"]


def test_the_version_is_printed(run):
    ended = run("more", "--version")
    assert ended.code == 0 and ended.out.strip() == __version__
