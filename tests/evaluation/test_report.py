"""The page: complete, self-contained, and useful when parts of the run are missing."""

import json
import re
import shlex
import shutil

import cv2
import numpy as np
import pytest

from more.data.shards.codec import encode_mask
from more.errors import UserError
from more.evaluation.charts import curve_svg
from more.evaluation.gallery import pick
from more.evaluation.layers import label_uri, photograph
from more.evaluation.next_step import next_step
from more.evaluation.pictures import LONGEST_SIDE, heat_overlay, mask_overlay, thumbnail
from more.evaluation.report import build_report, read_log, shared
from more.evaluation.score import evaluate
from more.evaluation.training_record import curves, progress, seconds_of, throughput
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
    for step in (last - 40, last - 20, last):
        yield {"step": step, "eval": {"miou": 40.0}}


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


def cards(page, part="Training images"):
    """The cards of one gallery, each as its piece of the page."""
    found = re.search(rf"<h2>{part}</h2>.*?</section>", page, re.DOTALL)
    return re.findall(r'<article class="card".*?</article>', found.group(0) if found else "",
                      re.DOTALL)


def test_nothing_external(page):
    assert not re.search(r"https?:|<script[^>]|<link(?! rel=\"icon\" href=\"data:,\")|@import",
                         page)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", page)
    assert set(re.findall(r"url\((#|[a-z:/]*)", page)) == {"data:image/webp", "#"}
    for target in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert target.startswith(("data:", "#")), target[:60]


def test_scores_with_their_routes(page, run, data):
    for name, words in (("seeds/lam", "LAM seeds"), ("masks/lam", "LAM masks")):
        result = evaluate(run / name, data, progress=False)
        assert f"{100 * result.miou:.2f}" in page and words in page
    table = page[page.index('id="scores"'):]
    assert table.index("seeds/cam") < table.index("seeds/lam") < table.index("masks/lam")
    assert "mIoU of 2" in page and "route b" in page
    assert "shapes &lt;micro&gt;" in page and "<micro>" not in page


def test_twelve_images_with_five_tiles_the_worst_first(page, run, data):
    found = cards(page)
    assert len(found) == 12 and all(card.count('class="tile"') == 5 for card in found)
    assert all(card.count("url(data:image/webp") == 1 for card in found), "each photograph once"
    ranked = evaluate(run / "masks/lam", data, progress=False).per_image
    worst = sorted(ranked, key=ranked.get)
    shown = [re.search("<h3>(.*?)</h3>", card).group(1) for card in found]
    assert shown[:6] == worst[:6] and shown[-3:] == worst[-3:]
    assert f"{100 * ranked[worst[0]]:.2f}" in found[0]


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
    assert len(cards(build_report(run, other, images=20).read_text())) == 20
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
    assert len(cards(page)) == 4 and page.count("<img ") == 4
    assert "not ranked" in page and 'data-layer="truth"' not in page
    assert "worst IoU first" not in page and "by name" in page


def test_damaged_set_is_a_note(tmp_path, rows, data):
    run = tmp_path / "run"
    write_set(run / "seeds" / "lam", "seeds", rows, seed_payload, LAM)
    write_set(run / "seeds" / "cam", "seeds", rows, seed_payload, LAM)
    (run / "seeds" / "cam" / "shard-00001.h5").unlink()
    page = build_report(run, data).read_text()
    assert "seeds/cam cannot be read" in page and len(cards(page)) == 12


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
    label = np.where(value > 0, 2, 0).astype(np.uint8)
    painted = mask_overlay(image, label)
    assert painted[5, 35, 1] > 100 > painted[5, 35, 0]
    assert (painted[5, 5] == 100).all(), "the picture stays as bright as it is outside the object"
    assert (heat_overlay(image, value)[5, 5] == 100).all()


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
    found = cards(page, "New images")
    assert len(found) == 2
    order = [found[0].index(text) for text in ("decoder (two), trained on masks from tags",
                                               "decoder (true), trained on true masks")]
    assert order == sorted(order)
    for folder in ("two", "true"):
        shutil.rmtree(run / folder / "masks")
    assert not cards(build_report(run).read_text(), "New images")


def test_the_decoders_seeds_are_pictured_where_no_masks_were_made_of_them(rows, data, tmp_path):
    run, decoder = tmp_path / "run", {**LAM, "map": "decoder", "tags": "none"}
    write_set(run / "two" / "seeds" / "told", "seeds", rows, seed_payload,
              {**decoder, "tags": "true"})
    write_set(run / "two" / "seeds" / "val", "seeds", rows[:6], seed_payload, decoder)
    (run / "two" / "run.json").write_text(json.dumps({"stage": 2, "val": str(data)}))
    (run / "log.jsonl").write_text('{"step": 1, "terms": {"total": 1.0}}\n')
    page = build_report(run, images=40).read_text()
    assert len(cards(page, "New images")) == 6, "not the set that was told the true tags"
    assert page.index("worst IoU first") and "seeds/val" in page


def test_no_curve_of_two_points_and_none_of_a_term_that_is_off():
    log = [{"step": step, "terms": {"cls": 1 / step, "seg": 0.0}} for step in (10, 20, 30)]
    log += [{"step": 30, "eval": {"lam": 40.0}}, {"step": 60, "eval": {"lam": 42.0}}]
    charts, few = curves(log)
    assert [chart["name"] for chart in charts] == ["loss cls"] and charts[0]["about"]
    assert [(item["name"], item["values"]) for item in few] == [
        ("loss seg", "0 all the time: switched off"),
        ("eval lam", "40.00 % at update 30, 42.00 % at update 60")]
    assert few[0]["about"] and "mIoU" in few[1]["about"]


def test_steps_and_throughput_agree_with_the_run(tmp_path):
    """10 slow updates and 20 fast ones of 8 images, then 4 that are not in the log yet."""
    log = [{"step": 10, "terms": {}, "seconds_per_step": 4.0, "images_per_s": 2.0},
           {"step": 30, "terms": {}, "seconds_per_step": 1.0, "images_per_s": 8.0}]
    (tmp_path / "status.json").write_text(
        json.dumps({"state": "finished", "step": 34, "iterations": 34}))
    assert progress(tmp_path, log, {}) == {"step": 34, "iterations": 34, "state": "finished"}
    assert seconds_of(log) == 60 and throughput(log) == 30 * 8 / 60
    assert seconds_of([]) is None and throughput([{"step": 1, "terms": {}}]) is None


def test_the_first_row_of_figures_and_percentages_alike(tmp_path, rows, data):
    run = tmp_path / "run"
    for name, supervision in (("two", "tags"), ("true", "true masks")):
        masks = write_set(run / name / "masks" / "val", "masks", rows, mask_payload, REFINED)
        (run / name / "run.json").write_text(json.dumps({"stage": 2, "supervision": supervision}))
        evaluate(masks, data, progress=False).save(run / name / "scores" / "masks.json")
    (run / "log.jsonl").write_text(json.dumps(
        {"step": 30, "terms": {"cls": 1.0}, "seconds_per_step": 4.0, "images_per_s": 2.0}))
    page = build_report(run, data).read_text(encoding="utf-8")
    top = page[page.index('class="headline"'):page.index('class="next"')]
    figures = re.findall(r"<span>(.*?)</span><b>(.*?)</b>", top)
    decoder = evaluate(run / "two/masks/val", data, progress=False).miou
    assert figures == [("masks", "–"), ("decoder on new images", f"{100 * decoder:.2f} %"),
                       ("of full supervision", "100.00 %"), ("minutes of training", "2.0")]
    text = re.sub(r"<style>.*?</style>|<script>.*?</script>|<svg.*?</svg>|<[^>]*>", " ", page,
                  flags=re.DOTALL)
    shown = [figure for figure in re.findall(r"([\d.]+) %", text)]
    assert len(shown) > 40 and all(re.fullmatch(r"\d+\.\d\d", figure) for figure in shown)


def test_no_absolute_path_is_in_the_page(tmp_path, run, rows):
    log = "Set /home/somebody/data/x-7/train was, C:\\Users\\me\\a.txt and ~/b/c.h5 were; " \
          "3/4, a[/b]"
    assert shared({"a": [log]})["a"] == [
        "Set …/train was, …/a.txt and …/c.h5 were; 3/4, a[/b]"]
    (run / "config.json").write_text(json.dumps(
        {"name": "n", "model": {"weights": str(tmp_path / "vit.safetensors")}}))
    broken = run / "scores" / "broken.json"
    broken.write_text("{")
    page = build_report(run, out=tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    broken.unlink()
    assert str(tmp_path.parent) not in page and str(run.parent) not in page
    assert "…/vit.safetensors" in page
    assert not re.search(r"[\"' >](/tmp|/home|/root|/work)/", page)


def test_it_names_what_to_do_next(tmp_path, rows):
    def said(state="finished", scores=()):
        return next_step(tmp_path, "run", list(scores), state)["command"]

    first = {"stage": 1, "supervision": "tags"}
    assert "train.sh" in said("stopped")
    assert "localize --run run" in said()
    (tmp_path / "seeds" / "lam").mkdir(parents=True)
    assert "refine run/seeds/lam" in said()
    (tmp_path / "masks" / "fused").mkdir(parents=True)
    assert "evaluate run/masks/fused" in said()
    assert "--masks run/masks/fused --init run" in said(scores=[first])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "run.json").write_text('{"stage": 2, "supervision": "tags"}')
    assert "localize --run run/two" in said(scores=[first])
    assert "predict" in said()  # nothing was scored on the way: nobody has true masks
    second = {"stage": 2, "supervision": "tags"}
    assert "--masks SET" in said(scores=[first, second])
    (tmp_path / "true").mkdir()
    (tmp_path / "true" / "run.json").write_text('{"stage": 2, "supervision": "true masks"}')
    assert "predict" in said(scores=[first, second])
    (tmp_path / "run.json").write_text('{"stage": 2}')
    assert "localize" in said() and "predict" in said(scores=[second])


def test_the_next_step_is_a_line_for_a_shell_whatever_the_folder_is_called(tmp_path):
    (tmp_path / "seeds" / "lam").mkdir(parents=True)
    command = next_step(tmp_path, "my run (1)", [], "finished")["command"]
    assert shlex.split(command)[4] == "my run (1)/seeds/lam"
    assert shlex.split(command)[-3] == "my run (1)/masks/lam"


def test_images_without_true_masks_are_not_to_be_scored(tmp_path, rows, data):
    tags = write_set(tmp_path / "tags", "images", rows,
                     lambda row: {"image": image_payload(row)["image"]})
    run = tmp_path / "run"
    for folder in ("seeds/lam", "masks/lam"):
        (run / folder).mkdir(parents=True)
    for found, wanted in ((tags, "--init run"), (data, "evaluate"), ("gone", "evaluate")):
        (run / "run.json").write_text(json.dumps({"stage": 1, "train": str(found)}))
        assert wanted in next_step(run, "run", [], "finished")["command"]


def test_names_cannot_become_part_of_the_page(tmp_path, rows):
    evil = ['<img src=x onerror="alert(1)">', "\"'><script>alert(2)</script>",
            "{{ 7 * 7 }}</style>"]
    run = tmp_path / "run"
    odd = [type(row)(f"<b>{row.name}'\"", *list(vars(row).values())[1:]) for row in rows[:4]]
    data = write_set(tmp_path / "data", "images", odd, image_payload, classes=evil)
    masks = write_set(run / "masks" / "lam", "masks", odd, lambda row: {"mask": encode_mask(
        np.where(row.truth == 255, 0, row.truth).astype(np.uint8))}, REFINED, classes=evil)
    evaluate(masks, data, progress=False).save(run / "scores" / "masks.json")
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "terms": {evil[1]: 1.0}}))
    page = build_report(run, data).read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 1 == page.count("</style>")
    assert "<img src=x" not in page and "<b>img" not in page and "&lt;img src=x" in page


def test_a_page_of_sixty_photographs_stays_below_five_megabytes():
    """Noise is the worst case: no photograph and no mask takes more."""
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    most = 3_600_000 // 90
    assert len(photograph(noise, most)) <= most
    blobs = cv2.resize(noise[:12, :16, 0] % 4, (900, 700), interpolation=cv2.INTER_NEAREST)
    assert len(label_uri(blobs, np.zeros((256, 3), np.uint8))) < 6_000


def test_the_page_of_a_stage_two_run_shows_its_own_predictions(rows, data, tmp_path):
    run = tmp_path / "two"
    write_set(run / "seeds" / "val", "seeds", rows[:6], seed_payload,
              {**LAM, "map": "decoder", "tags": "none"})
    (run / "run.json").write_text(json.dumps({"stage": 2, "val": str(data)}))
    page = build_report(run, images=12).read_text()
    assert len(cards(page, "New images")) == 6 and not cards(page)
    assert "decoder (two), trained on masks from tags" in page and "masks/lam" not in page
