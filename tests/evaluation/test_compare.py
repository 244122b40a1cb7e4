"""One set against another or against a saved score: differences, refusals, warnings."""

import json

import numpy as np
import pytest
from rich.console import Console

from more.data.shards.codec import encode_mask
from more.errors import UserError
from more.evaluation.compare import compare, comparison_table
from more.evaluation.routes import describe_route, route_letter
from more.evaluation.run_scores import score_table
from more.evaluation.score import evaluate
from tests.command.conftest import run  # noqa: F401
from tests.evaluation.conftest import CLASSES, LAM, REFINED, image_payload, mask_payload, write_set

PREDICTED = {**REFINED, "seeds": {**LAM, "tags": "predicted"}}


def shifted_payload(row):
    """Odd images worse than in `mask_payload`, the even ones without its wrong corner."""
    mask = np.where(row.truth == 255, 0, row.truth).astype(np.uint8)
    if int(row.name[-2:]) % 2:
        mask = np.roll(mask, int(row.name[-2:]), 1)
    return {"mask": encode_mask(mask)}


@pytest.fixture(scope="module")
def a(tmp_path_factory, rows):
    return write_set(tmp_path_factory.mktemp("a") / "masks" / "new", "masks", rows[:16],
                     mask_payload, REFINED)


@pytest.fixture(scope="module")
def b(tmp_path_factory, rows):
    return write_set(tmp_path_factory.mktemp("b") / "masks" / "old", "masks", rows[:3:-1],
                     shifted_payload, REFINED, shards=3)


def quiet(*args, **options):
    return compare(*args, progress=False, **options)


def warned(found):
    return " ".join(found.warnings)


def shown(table, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_both_on_the_images_that_both_hold(tmp_path, rows, a, b, data):
    found = quiet(a, b, data)
    parts = [write_set(tmp_path / name, "masks", rows[4:16], payload)
             for name, payload in (("a", mask_payload), ("b", shifted_payload))]
    one, other = (evaluate(part, data, progress=False) for part in parts)
    assert found.a["images"] == found.b["images"] == 12
    assert found.notes[0] == ("scored on the 12 images that both hold; A holds 4 others; "
                              f"B holds 4 others ({data.name})")
    means = found.means()
    assert means["miou"] == {"a": one.miou, "b": other.miou,
                             "difference": one.miou - other.miou}
    assert means["boundary_iou"]["difference"] == one.boundary_iou - other.boundary_iou
    for name, row in found.classes().items():
        place = ["background", *CLASSES].index(name)
        assert row["iou"]["a"] == one.scores.iou[place]
        assert row["iou"]["b"] == other.scores.iou[place]
        assert row["boundary_iou"]["difference"] == one.boundary[place] - other.boundary[place]
    assert found.warnings == []


def test_images_that_changed(a, b, data):
    found = quiet(a, b, data)
    one, other = (evaluate(path, data, progress=False).per_image for path in (a, b))
    better, worse = found.better(), found.worse()
    assert {item.id for item in better} == {f"img_{n:02d}" for n in range(5, 16, 2)}
    assert {item.id for item in worse} == {f"img_{n:02d}" for n in range(4, 16, 2)}
    for items, sign in ((better, 1), (worse, -1)):
        changes = [sign * (one[item.id] - other[item.id]) for item in items]
        assert changes == sorted(changes, reverse=True) and changes[-1] > 0
    listed = found.to_json(listed=2)["comparison"]
    assert [item["id"] for item in listed["better"]] == [item.id for item in better[:2]]
    assert listed["worse"][0]["difference"] == worse[0].a - worse[0].b < 0


def test_against_itself_nothing_changes(a, data):
    found = quiet(a, a, data, sweep=True, classes=["dog"])
    assert found.better() == found.worse() == []
    assert {figures["difference"] for figures in found.means().values()} == {0}
    assert "miou_subset" in found.means()


def test_options_reach_both_sides(rows, data, seeds):
    found = quiet(seeds, seeds, data, threshold=0.3, boundary=0, against_name="again")
    assert found.a["threshold"] == found.b["threshold"] == 0.3
    assert found.b["name"] == "again" and "boundary_iou" not in found.means()


def test_different_routes_are_a_warning(tmp_path, rows, a, data, seeds):
    path = write_set(tmp_path / "c", "masks", rows, mask_payload, PREDICTED)
    assert "A: b, B: c" in warned(quiet(a, path, data))
    unknown = write_set(tmp_path / "d", "masks", rows, mask_payload)
    assert "route of B is unknown" in warned(quiet(a, unknown, data))
    assert quiet(a, seeds, data).warnings == []  # both route b


@pytest.mark.parametrize("provenance, letter", [
    (LAM, "b"), (REFINED, "b"), (PREDICTED, "c"), ({**LAM, "tags": "predicted"}, "c"),
    ({**LAM, "map": "decoder", "tags": None}, "a"),
    ({**LAM, "map": "decoder", "tags": "true"}, "a with true tags"),
    ({**LAM, "tags": None}, None), ({}, None)])
def test_letter_of_every_route(provenance, letter):
    assert route_letter(describe_route(provenance)) == letter


def test_saved_score(tmp_path, a, b, data):
    saved = evaluate(a, data, progress=False).save(tmp_path / "a.json")
    found = quiet(a, saved, data)
    assert {figures["difference"] for figures in found.means().values()} == {0}
    assert found.images == [] and found.warnings == []
    assert "the same 16 images" in found.notes[0] and "not known" in found.notes[-1]
    assert "not on the same" in warned(quiet(b, saved, data))


def test_saved_score_of_other_images(tmp_path, rows, a, data, seeds):
    saved = evaluate(seeds, data, progress=False).save(tmp_path / "s.json")
    assert "A was scored on 16 images, B on 20" in warned(quiet(a, saved, data))


def test_saved_score_with_another_band_or_none(tmp_path, a, data):
    saved = evaluate(a, data, boundary=0.05, progress=False).save(tmp_path / "wide.json")
    found = quiet(a, saved, data)
    assert "0.02 of the diagonal in A, 0.05 in B" in warned(found)
    assert "boundary_iou" not in found.means()
    assert "boundary_iou" not in found.classes()["dog"] and "iou" in found.classes()["dog"]
    bare = evaluate(a, data, boundary=0, progress=False).save(tmp_path / "bare.json")
    found = quiet(a, bare, data)
    assert any("without boundary" in line for line in found.notes) and not found.warnings


def test_score_saved_by_an_older_version(tmp_path, a, data):
    record = evaluate(a, data, progress=False).to_json()
    del record["data_digest"], record["images_digest"]
    (tmp_path / "old.json").write_text(json.dumps(record))
    assert "as many 16 images" in quiet(a, tmp_path / "old.json", data).notes[0]
    (tmp_path / "old.json").write_text(json.dumps({**record, "data": "else"}))
    refuse(a, tmp_path / "old.json", data, "was scored on else")


def refuse(a, b, data, *words):
    with pytest.raises(UserError) as error:
        quiet(a, b, data)
    assert error.value.fix
    for word in words:
        assert word in str(error.value), str(error.value)


def test_refuses_other_data(tmp_path, rows, a, data):
    half = write_set(tmp_path / "half", "images", rows[:16], image_payload)
    saved = evaluate(a, half, progress=False).save(tmp_path / "half.json")
    refuse(a, saved, data, "half.json", "scored on half", data.name)
    renamed = write_set(tmp_path / "masks" / "x", "masks",
                        [type(r)("x" + r.name, *list(vars(r).values())[1:]) for r in rows],
                        mask_payload)
    refuse(a, renamed, data, "no image in common")
    more = write_set(tmp_path / "more", "masks", rows, mask_payload)
    refuse(a, more, half, "does not hold 4 of the 20")
    record = json.loads(saved.read_text())
    record["classes"]["tram"] = record["classes"].pop("train")
    (tmp_path / "tram.json").write_text(json.dumps(record))
    refuse(a, tmp_path / "tram.json", half, "other classes")


@pytest.mark.parametrize("text, word", [(None, "no such"), ("{", "cannot be read"),
                                        ("[]", "not a score"), ('{"classes": {}}', "not a score")])
def test_refuses_what_is_no_score(tmp_path, a, data, text, word):
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text)
    refuse(a, path, data, "b.json", word)


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits(a, b, data, width):
    found = quiet(a, b, data)
    text = shown(comparison_table(found), width)
    assert "…" not in text and "boundary A" in text and text.count("A − B") == 2
    means = found.means()["miou"]
    assert f"{100 * means['a']:.2f} │ {100 * means['b']:.2f}" in text
    assert f"{100 * means['difference']:+.2f}" in text
    flat = " ".join(text.split())
    assert "A better: 6 images, most (B → A): " + found.better()[0].id in flat
    assert "A worse: 6 images" in flat and "A: masks/new: LAM masks" in flat


def test_table_of_a_saved_score_lists_no_images(tmp_path, a, data, seeds):
    saved = evaluate(seeds, data, progress=False).save(tmp_path / "s.json")
    text = " ".join(shown(comparison_table(quiet(a, saved, data)), 80).split())
    assert "A better" not in text and "warning: A was scored on 16 images" in text


def test_score_table_has_the_boundary_where_known(a, b, data):
    rows = [evaluate(a, data, progress=False).to_json(),
            evaluate(b, data, boundary=0, progress=False).to_json()]
    text = shown(score_table(rows), 80)
    assert "boundary IoU" in text and f"{100 * rows[0]['boundary_iou']:.2f}" in text
    assert "boundary IoU" not in shown(score_table(rows[1:]), 80)


def test_command_line(run, tmp_path, a, b, data):  # noqa: F811
    ended = run("more", "evaluate", a, "--data", data, "--against", b, "--json", "--workers", 1)
    out = json.loads(ended.out)["comparison"]
    expected = quiet(a, b, data, name="masks/new", against_name="masks/old").to_json()
    assert ended.code == 0 and out == expected["comparison"] and out["b"]["name"] == "masks/old"
    ended = run("more", "evaluate", a, "--data", data, "--against", b, "--boundary", 0)
    assert ended.code == 0 and "IoU A" in ended.out and "boundary A" not in ended.out
    ended = run("more", "evaluate", a, "--data", data, "--against", b, "--save",
                tmp_path / "x.json")
    assert ended.code == 2 and "--save" in ended.err and not (tmp_path / "x.json").exists()


def test_command_line_of_one_set(run, tmp_path, a, data):  # noqa: F811
    saved = tmp_path / "scores" / "a.json"
    ended = run("more", "evaluate", a, "--data", data, "--boundary", 0.05, "--json", "--save",
                saved, "--workers", 2)
    out = json.loads(ended.out)
    assert ended.code == 0 and out["boundary_width"] == 0.05 and out == json.loads(
        saved.read_text())
    ended = run("more", "evaluate", a, "--data", data, "--no-calibration", "--workers", 0)
    assert ended.code == 2 and "workers" in ended.err
