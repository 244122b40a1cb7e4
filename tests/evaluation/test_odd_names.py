"""Class names with brackets, slashes, quotes and emoji reach every table and file as they are."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from data_tools.inspect import main as inspect
from more.cli import app
from more.progress import PlainTable, console, track
from tests.evaluation.conftest import image_payload, make_rows, mask_payload, write_set

ODD = ["a[/b]", 'dining [red]"table"', "🐶 <b>dog</b> | x/y's"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images and masks whose classes have such names."""
    root, rows = tmp_path_factory.mktemp("odd"), make_rows(6)
    return (write_set(root / "data[/x]", "images", rows, image_payload, classes=ODD),
            write_set(root / "masks", "masks", rows, mask_payload, classes=ODD))


def output(*arguments):
    result = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "250"},
                                catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("more", [[], ["--calibration"], ["--boundary", "0.02"],
                                  ["--classes", ODD[0]]])
def test_evaluate_prints_them(odd, more):
    said = output("evaluate", odd[1], "--data", odd[0], *more)
    assert all(name in said for name in ODD)


def test_evaluate_saves_and_compares_them(odd, tmp_path):
    output("evaluate", odd[1], "--data", odd[0], "--save", tmp_path / "scores.json")
    assert list(json.loads((tmp_path / "scores.json").read_text())["classes"])[1:] == ODD
    assert all(name in output("evaluate", odd[1], "--data", odd[0], "--against", odd[1])
               for name in ODD)


def test_inspect_prints_and_draws_them(odd, tmp_path, capsys):
    assert inspect(odd[0], pixels=True, sheet=tmp_path / "sheet.png", images=3, seed=0, workers=1,
                   as_json=False) == 0
    said = capsys.readouterr()
    assert all(name in said.out + said.err for name in ODD)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("format", ["png", "training", "rle"])
def test_export_writes_them(odd, tmp_path, format):
    out = tmp_path / ("out.json" if format == "rle" else "out")
    data = [] if format == "png" else ["--data", odd[0]]
    output("export", odd[1], *data, "--out", out, "--format", format)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    texts = [path.read_text() for path in files if path.suffix in (".txt", ".json")]
    assert any(all(name in text or json.dumps(name)[1:-1] in text for name in ODD)
               for text in texts)


def test_tables_and_notes_show_text_as_it_is(capsys):
    table = PlainTable("[bold]", title="[x]", caption="[/y]")
    table.add_column("[red]h", footer="[/f]")
    table.add_row("[/a]", "b[/]")
    with track(1, "job", disable=False) as bar:
        console.print(table)
        bar.note("failed: a[/b]")
    said = capsys.readouterr().err
    assert all(text in said for text in ("[bold]", "[x]", "[/y]", "[red]h", "[/a]", "b[/]",
                                         "failed: a[/b]"))
