"""CHANGELOG.md and CITATION.cff say what the code says."""

from __future__ import annotations

import re

import yaml

from more import __version__, run_folder
from more.data.shards import format as shards
from more.tuning import tune_result as result
from tests.conftest import ROOT

CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def row(start: str) -> str:
    """The number in the table of compatibility, of the row that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(start)}[^|]*\| ([^|]+?) \|", CHANGES, re.M)
    return found


def test_the_newest_entry_is_this_version():
    assert re.findall(r"^## (\d[^,\s]*)", CHANGES, re.M)[0] == __version__


def test_the_table_has_the_numbers_of_the_formats():
    assert row("shard set").startswith(f"format {shards.FORMAT},")
    assert row("`tune.json`") == f"format {result.FORMAT}"
    weights = (ROOT / "more" / "inference" / "trained.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"(more-weights-\d+)"', weights)) == {
        row("file of `more export-weights`").strip("`")}


def test_the_files_of_a_checkpoint_are_named():
    from more.train import checkpoint

    for name in (run_folder.WEIGHTS, run_folder.TRAINING, run_folder.MARKER, checkpoint.RANKS,
                 checkpoint.STATE):
        assert f"`{name}`" in CHANGES


def test_the_citation_is_of_this_version_and_of_the_paper_that_readme_names():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = yaml.safe_load(text)
    assert {"cff-version", "title", "message", "authors"} <= set(cited), "CFF requires these"
    assert cited["version"] == __version__
    assert (ROOT / "LICENSE").is_file() and cited["license"] == "Apache-2.0"
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f'"{paper["title"]}"' in readme
    assert paper["identifiers"][0]["value"].replace(":", " ") in readme
    assert all(set(author) == {"given-names", "family-names"} for author in paper["authors"])
