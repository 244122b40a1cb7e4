"""The sheet of overlays that `more predict` draws, and pictures without any class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from more.inference import contact_sheet
from more.inference.contact_sheet import SHEET, write_contact_sheet
from more.inference.predict import predict
from more.inference.predict_job import Options
from tests.data.sets import picture
from tests.inference.test_predict import (  # noqa: F401
    command,
    facts,
    made,
    photos,
    run,
    values,
)

PLAIN = Options(crf=False)
NOTHING = Options(crf=False, tag_threshold=1.0)
CELL = contact_sheet._SIDE + contact_sheet._GAP


def sheet_of(out: Path) -> np.ndarray:
    with Image.open(out / SHEET) as image:
        assert image.format == "JPEG"
        return np.asarray(image)


def columns(out: Path) -> int:
    return sheet_of(out).shape[1] // CELL


def test_it_shows_the_overlays_with_their_names(run, photos, tmp_path, monkeypatch):  # noqa: F811
    """Cell for cell: the colour of an overlay is found where its name says."""
    out, drawn = tmp_path / "out", []
    fitted = contact_sheet.fitted
    monkeypatch.setattr(contact_sheet, "fitted", lambda text, *rest: (
        drawn.append(text), fitted(text, *rest))[1])
    predict([str(photos)], run, out, Options(crf=False, tag_threshold=0.0))
    assert drawn == ["a", "sub/b", "sub/deep/c"] and columns(out) == 2
    for name, colour in (("a", (250, 0, 0)), ("sub/b", (0, 250, 0)), ("sub/deep/c", (0, 0, 250))):
        Image.new("RGB", (400, 300), colour).save(out / f"{name}_overlay.jpg")
    write_contact_sheet(out)
    sheet, middle = sheet_of(out).astype(int), CELL // 2
    high = CELL + contact_sheet._LINE
    for row, column, colour in ((0, 0, (250, 0, 0)), (0, 1, (0, 250, 0)), (1, 0, (0, 0, 250))):
        found = sheet[row * high + middle, column * CELL + middle]
        assert np.abs(found - colour).max() < 12
    assert (sheet[high + middle, CELL + middle] > 240).all(), "no fourth picture"


def test_it_is_no_result_and_follows_the_folder(run, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    predict([str(photos)], run, out, PLAIN)
    first = (out / SHEET).read_bytes()
    assert columns(out) == 2
    tally = predict([str(photos)], run, out, PLAIN)
    assert (tally.done, tally.skipped) == (0, 3) and (out / SHEET).read_bytes() == first
    (photos / "d.jpg").write_bytes(picture(8))
    (photos / "e.jpg").write_bytes(picture(9))
    predict([str(photos / "d.jpg"), str(photos / "e.jpg")], run, out, PLAIN)
    assert columns(out) == 3, "the results of earlier calls are shown, too"
    (out / SHEET).unlink()
    without = Options(crf=False, sheet=False)
    predict([str(photos)], run, out, without)
    assert not (out / SHEET).exists()


def test_a_sheet_of_masks_that_are_no_more_is_removed(run, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    predict([str(photos)], run, out, PLAIN)
    predict([str(photos)], run, out, Options(crf=False, sheet=False))
    assert (out / SHEET).is_file(), "nothing changed"
    predict([str(photos)], run, out, Options(crf=False, sheet=False, tag_threshold=0.1))
    assert not (out / SHEET).exists()
    predict([str(photos)], run, out, PLAIN)
    predict([str(photos)], run, out, Options(crf=False, overlay=False, tag_threshold=0.1))
    assert not (out / SHEET).exists(), "no overlay is left"


@pytest.mark.parametrize("kind", ["picture", "text", "link", "lost", "folder"])
def test_a_file_of_the_name_that_is_no_sheet_is_left_alone(run, photos, tmp_path, capsys,  # noqa: F811
                                                          kind):
    out = tmp_path / "out"
    out.mkdir()
    path, own = out / SHEET, photos / "a.jpg"
    before = own.read_bytes()
    {"picture": lambda: path.write_bytes(before), "text": lambda: path.write_text("mine"),
     "link": lambda: path.symlink_to(own), "lost": lambda: path.symlink_to(tmp_path / "lost"),
     "folder": path.mkdir}[kind]()
    assert predict([str(photos)], run, out, PLAIN).done == 3
    assert "left as it is" in capsys.readouterr().err and own.read_bytes() == before
    predict([str(photos)], run, out, Options(crf=False, sheet=False, tag_threshold=0.1))
    if kind in ("folder", "lost"):
        assert path.is_dir() if kind == "folder" else path.is_symlink()
    else:
        assert path.read_bytes() == (b"mine" if kind == "text" else before)


def test_a_picture_of_the_sheets_name_keeps_its_results(run, tmp_path):  # noqa: F811
    folder = tmp_path / "photos"
    folder.mkdir()
    own = picture(3)
    (folder / SHEET).write_bytes(own)
    predict([str(folder)], run, folder / "out", PLAIN)
    assert made(folder / "out") == ["contact_sheet.json", "contact_sheet.png",
                                    "contact_sheet_overlay.jpg"]
    assert (folder / SHEET).read_bytes() == own and columns(folder / "out") == 1
    assert predict([str(folder)], run, folder / "out", PLAIN).skipped == 1, "no new input"


def test_of_many_results_some_are_shown(run, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(contact_sheet, "MOST", 2)
    shown = []
    draw = contact_sheet._draw
    monkeypatch.setattr(contact_sheet, "_draw", lambda results, title: (
        shown.append(([result.name for result in results], title)), draw(results, title))[1])
    predict([str(photos)], run, tmp_path / "out", PLAIN)
    assert shown == [(["a", "sub/deep/c"], "2 of 3 pictures")]


def test_a_damaged_overlay_leaves_a_grey_field(run, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    predict([str(photos / "a.jpg")], run, out, PLAIN)
    (out / "a_overlay.jpg").write_bytes(b"no picture")
    (out / "a.json").write_text("{")
    write_contact_sheet(out)
    assert (sheet_of(out)[CELL // 2, 20] < 200).all()


def test_pictures_without_a_class_are_counted_and_named(run, photos, tmp_path):  # noqa: F811
    """Those of an earlier call, which are skipped, as well; failed ones are not."""
    out = tmp_path / "out"
    (photos / "bad.jpg").write_bytes(b"")
    for skipped in (0, 3):
        tally = predict([str(photos)], run, out, NOTHING)
        assert tally.skipped == skipped and len(tally.failures) == 1
        (note,), (count,) = tally.notes.keys(), tally.notes.values()
        assert count == 3 and note.startswith("no class above background")
        assert "a, sub/b, sub/deep/c;" in note and note in tally.summary()
    assert all(facts(path)["no_class"] for path in out.rglob("*.json"))
    tally = predict([str(photos / "a.jpg")], run, tmp_path / "some",
                    Options("lam", tag_threshold=0.0, crf=False))
    assert values(tmp_path / "some" / "a.png").any() and not tally.notes
    assert facts(tmp_path / "some" / "a.json")["no_class"] is False


def test_the_command_ends_with_the_next_step(run, photos, tmp_path, command):  # noqa: F811
    out = tmp_path / "out"
    arguments = (photos, "--run", run, "--out", out, "--no-crf")
    code, said = command(*arguments, "--no-sheet")
    assert code == 0 and f"next: look at {out};" in said and not (out / SHEET).exists()
    code, said = command(*arguments)
    assert code == 0 and f"next: look at {out / SHEET};" in said and (out / SHEET).is_file()
    (out / SHEET).write_text("somebody's own file")
    code, said = command(*arguments)
    assert code == 0 and f"next: look at {out};" in said
    (photos / "bad.jpg").write_bytes(b"")
    code, said = command(*arguments)
    assert code == 1 and said.endswith("then the same command: it tries these alone")
    assert json.loads((out / "a.json").read_text())["files"] == ["a.png", "a_overlay.jpg"]
