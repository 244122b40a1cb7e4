"""Scores of whole sets, the refusals, and the JSON form."""

import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from more.data.seeds import SeedItem, encode_seed, seed_label
from more.data.shards.codec import encode_mask
from more.errors import UserError
from more.evaluation.metrics import confusion_matrix, image_iou, scores
from more.evaluation.score import evaluate
from more.evaluation.score_count import SWEEP
from tests.evaluation.conftest import (
    CLASSES,
    LAM,
    REFINED,
    image_payload,
    mask_payload,
    seed_payload,
    write_set,
)


def direct(rows, threshold):
    """Scores of the seeds, one image after another."""
    return scores(sum(confusion_matrix(row.truth, label_of(row, threshold), len(CLASSES) + 1)
                      for row in rows))


def label_of(row, threshold):
    stored = SeedItem(row.seed.keys, row.seed.maps.astype(np.float16))
    return seed_label(stored, row.truth.shape, threshold)


def refuse(*args, **options) -> str:
    with pytest.raises(UserError) as error:
        evaluate(*args, progress=False, **options)
    assert error.value.fix
    return str(error.value)


def test_seeds_equal_image_by_image(rows, data, seeds):
    result = evaluate(seeds, data, progress=False)
    expected = direct(rows, 0.5)
    np.testing.assert_array_equal(result.scores.iou, expected.iou)
    assert result.miou == expected.miou and 0.2 < result.miou < 0.99
    assert result.images == len(rows) and result.name == "seeds/lam" and result.threshold == 0.5
    assert "LAM seeds" in result.route and "route b" in result.route


def test_sweep_equals_separate_runs(rows, data, seeds):
    result = evaluate(seeds, data, sweep=True, progress=False)
    assert list(result.sweep) == list(SWEEP) and SWEEP[0] == 0.1 and SWEEP[-1] == 0.9
    for threshold in (0.1, 0.3, 0.5, 0.9):
        assert result.sweep[threshold] == direct(rows, threshold).miou
    assert result.best == max(result.sweep.items(), key=lambda item: item[1])
    assert result.best[1] >= result.miou == result.sweep[0.5]


def test_value_on_the_threshold_is_background(tmp_path, rows, data):
    def payload(row):
        return {"seed": encode_seed(SeedItem(np.array([1]), np.full((1, 6, 6), 0.5)))}

    path = write_set(tmp_path / "flat", "seeds", rows, payload, LAM)
    result = evaluate(path, data, sweep=True, progress=False)
    assert result.scores.recall[0] == 1
    assert result.sweep[0.5] == result.miou and result.sweep[0.45] != result.miou


def test_threshold_argument(rows, data, seeds):
    result = evaluate(seeds, data, threshold=0.3, progress=False)
    assert result.miou == direct(rows, 0.3).miou != direct(rows, 0.5).miou
    assert "threshold 0.30" in result.route
    assert "1.5" in refuse(seeds, data, threshold=1.5)


def test_workers_do_not_change_figures(data, seeds):
    one, four = (evaluate(seeds, data, workers=n, sweep=True, progress=False) for n in (1, 2))
    assert json.dumps(one.to_json()) == json.dumps(four.to_json())
    assert one.per_image == four.per_image


def test_explicit_background_is_argmax(tmp_path, rows, data):
    def payload(row):
        maps = np.zeros((2, 8, 8), np.float16)
        maps[0] = 0.3
        maps[1, :4] = 0.4
        return {"seed": encode_seed(SeedItem(np.array([0, 2]), maps))}

    path = write_set(tmp_path / "decoder", "seeds", rows, payload, {**LAM, "map": "decoder"})
    result = evaluate(path, data, sweep=True, progress=False)
    assert result.threshold is None and result.sweep == {}
    assert 0 < result.scores.recall[2] < 1 and result.scores.recall[1] == 0


def test_masks(tmp_path, rows, data):
    path = write_set(tmp_path / "masks" / "lam", "masks", rows, mask_payload, REFINED)
    result = evaluate(path, data, progress=False)
    assert result.threshold is None and result.unlabelled == 0 and "dense CRF" in result.route
    assert {name for name, iou in result.per_image.items() if iou == 1} == \
        {row.name for row in rows if int(row.name[-2:]) % 2}
    worst = result.to_json()["worst"]
    assert result.per_image[worst[0]] == min(result.per_image.values())


def test_unlabelled_pixels_are_left_out_and_counted(tmp_path, rows, data):
    def payload(row):
        mask = row.truth.copy()
        mask[:, :20] = 255
        return {"mask": encode_mask(mask)}

    result = evaluate(write_set(tmp_path / "m", "masks", rows, payload), data, progress=False)
    assert result.miou == 1 and 0.3 < result.unlabelled < 0.5
    assert any("unlabelled" in line for line in result.notes())
    assert "route unknown" in result.route


def test_subset_of_classes(data, seeds):
    result = evaluate(seeds, data, classes=["cat", "background"], progress=False)
    assert result.subset == ["background", "cat"]
    assert result.miou_subset == pytest.approx(result.scores.iou[[0, 2]].mean())
    assert result.to_json()["miou_subset"] == result.miou_subset
    assert "dog" in refuse(seeds, data, classes=["dogg"])


def test_json_form(tmp_path, rows, data):
    classes = [*CLASSES, "never"]
    wide = [type(row)(row.name, row.truth, np.append(row.tags, 0), row.image, row.seed)
            for row in rows]
    truth = write_set(tmp_path / "wide", "images", wide, image_payload, classes=classes)
    path = write_set(tmp_path / "s", "seeds", wide, seed_payload, LAM, classes=classes)
    out = evaluate(path, truth, progress=False)
    saved = json.loads(out.save(tmp_path / "scores" / "s.json").read_text(),
                       parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert saved == out.to_json()
    assert list(saved["classes"]) == ["background", *classes]
    assert set(saved["classes"]["dog"]) == {"iou", "boundary_iou", "precision", "recall",
                                            "confusion"}
    assert set(saved["classes"]["never"].values()) == {None}
    assert saved["miou"] == out.miou and saved["images"] == len(rows)
    assert {"route", "name", "threshold"} <= set(saved)


def test_table_shows_every_class_and_the_route(data, seeds):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    result = evaluate(seeds, data, sweep=True, progress=False)
    console.print(result.table())
    text = console.export_text()
    assert all(name in text for name in ["background", *CLASSES])
    assert "route b" in text and f"{100 * result.miou:.2f}" in text and "best threshold" in text


def test_partly_missing_images_are_listed(tmp_path, rows, data):
    path = write_set(tmp_path / "s", "seeds", rows[:15], seed_payload, LAM)
    result = evaluate(path, data, progress=False)
    assert result.images == 15 and result.missing == [row.name for row in rows[15:]]
    assert any("img_15" in line for line in result.notes())


def test_rows_in_another_order(tmp_path, rows, data, seeds):
    path = write_set(tmp_path / "s", "seeds", rows[::-1], seed_payload, LAM, shards=3)
    assert evaluate(path, data, progress=False).miou == evaluate(seeds, data, progress=False).miou


def test_images_unknown_to_the_data_set(tmp_path, rows, seeds):
    truth = write_set(tmp_path / "half", "images", rows[:10], image_payload)
    message = refuse(seeds, truth)
    assert "img_10" in message and "10 of the 20" in message and "half" in message


def test_images_without_true_mask(tmp_path, rows, seeds):
    def payload(row):
        both = image_payload(row)
        return {"image": both["image"]} if row.name == "img_07" else both

    truth = write_set(tmp_path / "bare", "images", rows, payload)
    assert "img_07" in refuse(seeds, truth)


def test_other_classes(tmp_path, rows, seeds):
    truth = write_set(tmp_path / "other", "images", rows, image_payload,
                      classes=["dog", "cat", "tram"])
    assert "other" in refuse(seeds, truth)


def test_wrong_kinds(data, seeds):
    assert "images" in refuse(data, data)
    assert "seeds" in refuse(seeds, seeds)


def test_mask_of_another_size_or_class_names_the_image(tmp_path, rows, data):
    def bad(name, mask):
        return lambda row: {"mask": encode_mask(mask(row) if row.name == name
                                                else np.zeros_like(row.truth))}

    small = write_set(tmp_path / "a", "masks", rows, bad("img_05", lambda r: r.truth[:-3]))
    assert "img_05" in refuse(small, data)
    strange = write_set(tmp_path / "b", "masks", rows,
                        bad("img_06", lambda r: np.full_like(r.truth, 7)))
    message = refuse(strange, data)
    assert "img_06" in message and "7" in message


def test_importing_needs_no_torch():
    code = "import sys, more.evaluation.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_image_iou_counts_classes_of_either_side():
    truth, label = np.array([[0, 0, 1, 1]]), np.array([[0, 2, 1, 1]])
    matrix = confusion_matrix(truth, label, 4).numpy()
    assert image_iou(matrix) == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize(("value", "held"), [(0, "only background"), (255, "no pixel but 255")])
def test_truth_without_any_class_is_no_score(tmp_path, rows, seeds, value, held):
    """Background alone gave "mIoU 79.83"."""
    def payload(row):
        return {**image_payload(row), "mask": encode_mask(np.full_like(row.truth, value))}

    truth = write_set(tmp_path / "bare", "images", rows, payload)
    message = refuse(seeds, truth)
    assert held in message and "--mask-values" in message


def test_a_missed_class_is_named_and_counted(tmp_path, rows, data):
    """Dogs taken for background, or left unlabelled: 0 in every mean, no mean of FP/TP."""
    figures = []
    for value in (0, 255):
        path = write_set(tmp_path / f"{value}", "masks", rows, lambda row, value=value: {
            "mask": encode_mask(np.where(row.truth == 1, value, row.truth).astype(np.uint8))})
        found = evaluate(path, data, progress=False)
        notes, saved = "\n".join(found.notes()), found.to_json()
        assert "the 4 of 4 classes with truth" in notes and "no pixel is right: dog" in notes
        assert saved["missed"] == ["dog"] and saved["classes_with_truth"] == 4
        assert saved["confusion"] is None and saved["classes"]["dog"]["precision"] == 0
        figures.append((saved["miou"], saved["precision"], saved["boundary_iou"]))
    assert figures[1] == (0.75, 0.75, 0.75) and max(figures[0]) < 0.75
    shown = Console(width=200, record=True, file=open("/dev/null", "w"))
    shown.print(found.table())
    assert "∞" in shown.export_text()


def test_means_say_which_classes_have_no_truth(tmp_path, rows, data):
    few = [row for row in rows if not (row.truth == 3).any()]
    path = write_set(tmp_path / "few", "masks", few, mask_payload, REFINED)
    found = evaluate(path, data, classes=["cat", "train"], progress=False)
    notes = "\n".join(found.notes())
    assert "the 3 of 4 classes with truth" in notes
    assert "over cat, train, without train, which have no truth" in notes
