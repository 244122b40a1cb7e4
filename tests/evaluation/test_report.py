"""The page: complete, self-contained, and useful when parts of the run are missing."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from more.errors import UserError
from more.evaluation.evaluate import evaluate
from more.evaluation.gallery import pick
from more.evaluation.pictures import (
    LONGEST_SIDE,
    curve_svg,
    heat_overlay,
    thumbnail,
)
from more.evaluation.report import build_report, read_log
from tests.evaluation.conftest import (
    LAM,
    REFINED,
    image_payload,
    mask_payload,
    seed_payload,
    write_set,
)


def log_lines(last=60):
    for step in range(1, last):
        yield {"step": step, "terms": {"total": 9 / step, "cls": 1 / step},
               "lr": {"encoder": 1e-4}, "images_per_s": 3.0}
    yield {"step": last, "eval": {"miou": 0.4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory, rows, data):
    run = tmp_path_factory.mktemp("runs") / "shapes_micro"
    where = {"data": str(data)}
    write_set(run / "seeds" / "cam", "seeds", rows, seed_payload, {**LAM, "map": "cam"},
              extra=where)
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM, extra=where)
    write_set(run / "masks" / "lam", "masks", rows, mask_payload, REFINED, extra=where)
    (run / "config.json").write_text(json.dumps(
        {"name": "shapes <micro>", "model": {"backbone": "custom", "graph": False}}))
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, log_lines())))
    for name in ("seeds/cam", "seeds/lam", "masks/lam"):
        evaluate(run / name, data, classes=["dog", "cat"], progress=False).save(
            run / "scores" / f"{name.replace('/', '-')}.json")
    return run


@pytest.fixture(scope="module")
def page(run):
    return build_report(run).read_text(encoding="utf-8")


def test_nothing_external(page):
    assert not re.search(r"https?:|<script|<link(?! rel=\"icon\" href=\"data:,\")|@import", page)
    for target in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert target.startswith(("data:", "#")), target[:60]


def test_scores_with_their_routes(page, run, data):
    for name, words in (("seeds/lam", "LAM seeds"), ("masks/lam", "LAM masks")):
        result = evaluate(run / name, data, progress=False)
        assert f"{100 * result.miou:.2f}" in page and words in page
    assert page.index("seeds/cam") < page.index("seeds/lam") < page.index("masks/lam")
    assert "mIoU of 2" in page and "route b" in page
    assert "shapes &lt;micro&gt;" in page and "<micro>" not in page


def test_twelve_images_with_five_tiles_the_worst_first(page, run, data):
    cards = re.findall(r'<article class="card">.*?</article>', page, re.DOTALL)
    assert len(cards) == 12 and all(card.count("<img ") == 5 for card in cards)
    ranked = evaluate(run / "masks/lam", data, progress=False).per_image
    worst = sorted(ranked, key=ranked.get)
    shown = [re.search("<h3>(.*?)</h3>", card).group(1) for card in cards]
    assert shown[:6] == worst[:6] and shown[-3:] == worst[-3:]
    assert f"{100 * ranked[worst[0]]:.2f}" in cards[0]


def test_stage_two_is_told_from_the_reference(tmp_path, rows, data):
    run = tmp_path / "run"
    for name, supervision in (("two", "tags"), ("true", "true masks")):
        masks = write_set(run / name / "masks" / "val", "masks", rows, mask_payload,
                          {**REFINED, "seeds": {**LAM, "map": "decoder", "tags": "none"}})
        (run / name / "run.json").write_text(json.dumps({"stage": 2, "supervision": supervision}))
        evaluate(masks, data, progress=False).save(run / name / "scores" / "masks.json")
    page = " ".join(build_report(run, data).read_text(encoding="utf-8").split())
    assert page.index("two: masks/val") < page.index("true: masks/val")
    assert "Stage two, trained on masks that come from image tags: two." in page
    assert ("Stage two, trained on true masks: true. These rows are a reference, not weak "
            "supervision.") in page
    assert "stage two: decoder, 4 scales" in page and ">of full supervision</th>" in page
    assert "trained on true masks: decoder, 4 scales + flip, dense CRF (route a)" in page


def test_curves_of_every_term(page):
    for name in ("loss total", "loss cls", "eval miou", "learning rate", "images per second"):
        assert f'aria-label="{name}"' in page
    assert page.index('"loss total"') < page.index('"loss cls"') < page.index('"eval miou"')


def test_given_data_wins_over_the_record(tmp_path, run, rows):
    other = write_set(tmp_path / "moved", "images", rows, image_payload)
    assert build_report(run, other, images=20).read_text().count('class="card"') == 20
    stranger = write_set(tmp_path / "else", "images",
                         [type(r)("x" + r.name, *list(vars(r).values())[1:]) for r in rows],
                         image_payload)
    with pytest.raises(UserError, match="else"):
        build_report(run, stranger)


def test_missing_pieces_are_named(tmp_path, rows):
    run = tmp_path / "thin"
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM)
    (run / "scores").mkdir()
    (run / "scores" / "broken.json").write_text("{")
    page = build_report(run).read_text()
    for text in ("config.json", "log.jsonl", "No scores", "seeds/cam", "masks/lam",
                 "broken.json", "--data"):
        assert text in page, text


def test_pictures_without_masks_or_truth(tmp_path, rows):
    truth = write_set(tmp_path / "bare", "images", rows,
                      lambda row: {"image": image_payload(row)["image"]})
    run = tmp_path / "run"
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM)
    page = build_report(run, truth, images=4).read_text()
    assert page.count('class="card"') == 4 and page.count("<img ") == 8
    assert "not ranked" in page and page.count('class="none"') == 12


def test_damaged_set_is_a_note(tmp_path, rows, data):
    run = tmp_path / "run"
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM)
    write_set(run / "seeds" / "cam", "seeds", rows, seed_payload, LAM)
    (run / "seeds" / "cam" / "shard-00001.h5").unlink()
    page = build_report(run, data).read_text()
    assert "seeds/cam cannot be read" in page and page.count('class="card"') == 12


def test_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError):
            build_report(folder)


def test_log_of_a_resumed_and_killed_run(tmp_path):
    lines = [{"step": 1, "terms": {"cls": 3.0}}, {"step": 2, "terms": {"cls": 2.0}},
             {"step": 2, "terms": {"cls": 1.5}}, {"step": 1, "eval": {"miou": 0.1}}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "te')
    notes: list[str] = []
    log = read_log(tmp_path, notes)
    assert [record["step"] for record in log] == [1, 2]
    assert log[1]["terms"]["cls"] == 1.5 and log[0]["eval"] == {"miou": 0.1}
    assert "terms" in log[0] and notes == ["log.jsonl: 1 unreadable line left out."]


def test_pick():
    order = [f"{n:03d}" for n in range(100)]
    chosen = pick(order, 12)
    assert [name for name, group in chosen if group == "worst"] == order[:6]
    assert [name for name, group in chosen if group == "best"] == order[-3:]
    middle = [int(name) for name, group in chosen if group == "median"]
    assert len(middle) == 3 and all(45 <= number <= 55 for number in middle)
    assert pick(order[:5], 12) == [(name, "all") for name in order[:5]]
    assert len({name for name, _ in pick(order, 13)}) == 13


def test_a_heat_overlay_keeps_the_shape_and_shows_the_map():
    image = np.full((30, 40, 3), 100, np.uint8)
    value = np.zeros((30, 40), np.float32)
    value[:, 20:] = 1
    heat = heat_overlay(image, value, (value > 0.5).astype(np.uint8))
    assert heat.shape == image.shape and heat.dtype == np.uint8
    assert heat[5, 35, 0] > heat[5, 35, 2] and (heat[5, 19] == 255).all()


def test_thumbnails():
    assert thumbnail(np.zeros((900, 600, 3), np.uint8)).shape == (LONGEST_SIDE, 200, 3)
    label = cv2.resize(np.array([[0, 20]], np.uint8), (900, 900), interpolation=cv2.INTER_NEAREST)
    assert set(np.unique(thumbnail(label, nearest=True))) == {0, 20}
    assert thumbnail(np.zeros((20, 30))).shape == (20, 30)


def test_long_and_broken_series_still_draw():
    values = np.sin(np.arange(20000) / 500)
    values[::7] = np.nan
    svg = curve_svg("loss", range(20000), values)
    assert len(svg) < 40_000 and "nan" not in svg and svg.startswith("<svg")
    assert curve_svg("empty", [], []).startswith("<svg")


def test_new_images_are_shown_with_the_network_that_made_each_mask(rows, data, tmp_path):
    run = tmp_path / "run"
    for folder, supervision in (("two", "tags"), ("true", "true masks")):
        write_set(run / folder / "masks" / "val", "masks", rows[:6], mask_payload, REFINED)
        (run / folder / "run.json").write_text(json.dumps(
            {"stage": 2, "supervision": supervision, "val": str(data)}))
    (run / "log.jsonl").write_text('{"step": 1, "terms": {"total": 1.0}}\n')
    page = build_report(run, images=4).read_text()
    part = page.split('id="new-images"')[1]
    assert part.count('<article class="card">') == 2
    order = [part.index(text) for text in ("stage two (two), trained on masks from tags",
                                           "stage two (true), trained on true masks")]
    assert order == sorted(order)
    for folder in ("two", "true"):
        shutil.rmtree(run / folder / "masks")
    assert 'id="new-images"' not in build_report(run).read_text()
