"""What the page shows of decoder, classes, pace and places: nothing wrong, nothing private."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from more.data.seeds import SeedItem
from more.errors import UserError
from more.evaluation.headline import facts, headline
from more.evaluation.report import build_report, shared
from more.evaluation.run_scores import read_scores
from more.evaluation.score import evaluate
from more.evaluation.training_record import progress, read_log
from more.evaluation.trust_charts import trust_charts
from tests.evaluation.conftest import CLASSES, LAM, REFINED, mask_payload, seed_payload, write_set
from tests.evaluation.test_report import cards

DECODER = {**LAM, "map": "decoder", "tags": "none"}


@pytest.fixture
def run(tmp_path, rows, data):
    """Stage one with seeds and masks of every image, stage two without any."""
    run = tmp_path / "my runs" / "one"
    where = {"data": str(data)}
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM, extra=where)
    write_set(run / "masks" / "lam", "masks", rows, mask_payload, REFINED, extra=where)
    (run / "two").mkdir()
    (run / "two" / "run.json").write_text(json.dumps({"stage": 2, "supervision": "tags"}))
    return run


def captions(card):
    return re.findall(r'data-caption="(.*?)"', card)


def answers(asked):
    """Stands for the network: a dog everywhere; keeps what it was asked."""
    def decode(folder, images, ids):
        asked.append((folder, list(ids)))
        return {name: SeedItem(np.array([0, 1]), np.stack([np.full((4, 4), 0.1),
                                                           np.full((4, 4), 0.9)]))
                for name in ids}
    return decode


def test_stage_two_answers_beside_the_seeds_of_every_card(run):
    asked = []
    page = build_report(run, images=8, decode=answers(asked)).read_text(encoding="utf-8")
    found = cards(page)
    assert len(found) == 8
    for card in found:
        assert captions(card) == ["image", "LAM", "decoder (two)", "mask after CRF", "truth"]
        decoder = re.search(r'data-layer="decoder".*?</figure>', card, re.DOTALL).group(0)
        assert "<img" in decoder and ">dog</span>" in decoder and " %</span>" in decoder
    (folder, ids), = asked
    assert folder == run / "two" and len(ids) == 8, "only what is shown"
    assert '<option value="decoder">decoder (two)</option>' in page


def test_stored_answers_go_first_and_are_no_new_images(run, rows, data):
    write_set(run / "two" / "seeds" / "train", "seeds", rows, seed_payload, DECODER,
              extra={"data": str(data)})
    asked = []
    page = build_report(run, images=4, decode=answers(asked)).read_text(encoding="utf-8")
    assert not asked and all("decoder (two)" in captions(card) for card in cards(page))
    assert not cards(page, "New images"), "they were trained on"


def test_stage_twos_answers_to_new_images_are_none_to_training_images(run, rows):
    new = [replace(row, name=f"new_{row.name}") for row in rows]
    write_set(run / "two" / "seeds" / "val", "seeds", new, seed_payload, DECODER)
    asked = []
    page = build_report(run, images=2, decode=answers(asked)).read_text(encoding="utf-8")
    assert asked[0][0] == run / "two" and "decoder (two)" in captions(cards(page)[0])


def test_stage_two_is_asked_although_stage_one_has_a_decoder(run, rows):
    write_set(run / "seeds" / "decoder", "seeds", rows, seed_payload, DECODER)
    asked = []
    page = build_report(run, images=2, decode=answers(asked)).read_text(encoding="utf-8")
    assert asked[0][0] == run / "two" and "decoder (two)" in captions(cards(page)[0])


def test_without_stage_two_the_runs_own_decoder(run, rows):
    (run / "two" / "run.json").unlink()
    asked = []
    page = build_report(run, images=2, decode=answers(asked)).read_text(encoding="utf-8")
    assert asked[0][0] == run and "decoder" in captions(cards(page)[0])
    untrained = build_report(run, images=2, decode=lambda *_: None).read_text(encoding="utf-8")
    assert 'data-layer="decoder"' not in untrained
    write_set(run / "seeds" / "decoder", "seeds", rows, seed_payload, DECODER)
    page = build_report(run, images=2, decode=answers(asked)).read_text(encoding="utf-8")
    assert len(asked) == 1 and captions(cards(page)[0])[2] == "decoder"


def test_a_missing_answer_is_named(run):
    page = build_report(run, images=2).read_text(encoding="utf-8")
    assert "--out …/one/two/seeds/train --map decoder" in page
    assert 'data-layer="decoder"' not in page

    def broken(*_):
        raise UserError("two/checkpoints: no checkpoint yet", "train first")
    page = build_report(run, images=2, decode=broken).read_text(encoding="utf-8")
    assert "pictures are missing: two/checkpoints: no checkpoint yet" in page
    assert len(cards(page)) == 2


def test_figures_say_over_which_classes_they_go(run, data):
    evaluate(run / "masks/lam", data, progress=False).save(run / "scores" / "masks.json")
    rows = read_scores(run, [])
    iou = {name: row["iou"] for name, row in rows[0]["classes"].items()}

    def about(known):
        return headline(run, rows, [], None, known)[0]["about"]

    assert about(["background", *CLASSES]).endswith("mean over all 4 classes that have truth")
    assert about(None) == about(["background", *CLASSES])
    mean = (iou["background"] + iou["dog"]) / 2
    assert about(["background", "dog"]).endswith(
        f"over the 2 of them that training images show: {100 * mean:.2f} %")
    assert "mean over all 4 classes that have truth" in build_report(run, data).read_text()


def test_the_classes_of_training_images_come_from_their_tags(tmp_path, rows, data):
    """The run saw dogs alone; its truth has all classes."""
    from more.evaluation.gallery import make_gallery

    few = [type(row)(row.name, row.truth, np.array([1, 0, 0], np.uint8), row.image, row.seed)
           for row in rows]
    write_set(tmp_path / "run" / "seeds" / "lam", "seeds", few, seed_payload, LAM)
    assert make_gallery(tmp_path / "run", data, 2).known == ["background", "dog"]
    write_set(tmp_path / "other" / "seeds" / "lam", "seeds", few, seed_payload,
              {**LAM, "tags": "predicted"})
    assert make_gallery(tmp_path / "other", data, 2).known is None


def test_pace_of_both_stages_also_after_a_resume(run):
    """Killed after update 12, of which 12 were logged; went on from 10 with other speeds."""
    lines = [{"step": 6, "terms": {"cls": 1.0}, "seconds_per_step": 1.0, "images_per_s": 8.0},
             {"step": 12, "terms": {"cls": 1.0}, "seconds_per_step": 9.0, "images_per_s": 1.0},
             {"step": 12, "terms": {"cls": 1.0}, "seconds_per_step": 2.0, "images_per_s": 4.0}]
    for folder, last in ((run, 12), (run / "two", 14)):
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "status.json").write_text(json.dumps(
            {"state": "finished", "step": last, "iterations": 20}))
    log = read_log(run, [])
    found = dict(facts(run, {}, log, progress(run, log, {})))
    assert found == {"updates": "12 of 20", "throughput": "5.3 images/s over all updates",
                     "two: updates": "14 of 20",
                     "two: throughput": "5.3 images/s over all updates"}
    page = build_report(run).read_text(encoding="utf-8")
    assert "<dt>two: updates</dt><dd>14 of 20</dd>" in page and "update 12" in page


def test_no_folder_of_this_machine_is_in_the_page(run, data):
    home, parent = str(Path.home()), str(run.parent)
    assert " " in parent, "blanks end a path in a text"
    (run / "config.json").write_text(json.dumps(
        {"name": "n", "model": {"weights": f"{home}/my weights/vit.safetensors",
                                "other": f"{parent}/x y/z", "alone": home}}))
    (run / "log.jsonl").write_text("{}")
    evaluate(run / "masks/lam", data, progress=False).save(run / "scores" / "masks.json")
    (run / "scores" / "broken.json").write_text("{")
    page = build_report(run).read_text(encoding="utf-8")
    for folder in (parent, f"{home}/", str(data.parent), "my runs"):
        assert folder not in page, folder
    assert "…/my weights/vit.safetensors" in page
    assert shared({f"{parent}/a": [f"in {parent}/one/b"]}, run) == {"…/a": ["in …/one/b"]}


def test_fewer_than_three_points_are_said_not_drawn():
    def record(levels):
        return {"name": "m", "data": "d", "calibration": {
            "pixels": 10, "error": 0.1, "bins": [
                {"low": 0, "high": 1, "pixels": 5, "confidence": at, "accuracy": at / 2}
                for at in levels],
            "curve": [{"threshold": at, "kept": 1 - at, "accuracy": 0.5, "miou": 0.25, "classes": 2}
                      for at in levels]}}

    few = trust_charts([record((0.6, 0.8))])
    assert [sorted(chart) for chart in few] == [["last", "name", "values"]] * 2
    assert "30.00 % right at confidence 60.00 %" in few[0]["values"]
    assert few[1]["values"].endswith("up to 0.8: 20.00 % kept, mIoU 25.00 %")
    assert all("svg" in chart for chart in trust_charts([record((0.6, 0.7, 0.8))]))
    assert trust_charts([{"name": "x"}]) == []
