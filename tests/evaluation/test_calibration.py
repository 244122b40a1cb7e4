"""Reliability of the confidence against a computation over all pixels in one array."""

import json

import numpy as np
import pytest

from more.data.shards.codec import encode_mask
from more.errors import UserError
from more.evaluation.calibration import BINS, THRESHOLDS, calibrate, calibration_counts
from more.evaluation.report import build_report
from more.evaluation.score import evaluate
from tests.evaluation.conftest import CLASSES, REFINED, mask_payload, write_set


def noisy(row):
    """A mask with confidence: doubtful pixels are wrong more often, some are unlabelled."""
    rng = np.random.default_rng(int(row.name[-2:]))
    level = rng.integers(80, 256, row.truth.shape).astype(np.uint8)
    wrong = rng.random(row.truth.shape) > level / 255
    label = np.where(row.truth == 255, 1, row.truth)
    label = np.where(wrong, (label + 1) % 4, label).astype(np.uint8)
    label[5, :30] = 255
    return label, level


def noisy_payload(row):
    label, level = noisy(row)
    return {"mask": encode_mask(label), "confidence": encode_mask(level)}


@pytest.fixture(scope="module")
def masks(tmp_path_factory, rows):
    return write_set(tmp_path_factory.mktemp("noisy") / "masks" / "lam", "masks", rows,
                     noisy_payload, REFINED, shards=4)


@pytest.fixture(scope="module")
def pixels(rows):
    """True class, label and confidence of every pixel that counts."""
    parts = [(row.truth, *noisy(row)) for row in rows]
    truth, label, level = (np.concatenate([part[i].ravel() for part in parts]) for i in range(3))
    kept = (truth != 255) & (label != 255)
    return truth[kept].astype(int), label[kept].astype(int), level[kept] / 255


def mean_iou(truth, label):
    return np.mean([((truth == k) & (label == k)).sum() / ((truth == k) | (label == k)).sum()
                    for k in range(len(CLASSES) + 1) if (truth == k).any()])


def test_bins_and_error(masks, data, pixels):
    found = evaluate(masks, data, progress=False).calibration
    truth, label, value = pixels
    assert found.pixels == len(truth)
    assert found.accuracy == pytest.approx((truth == label).mean())
    assert found.confidence == pytest.approx(value.mean())
    gap = 0
    for place, item in enumerate(found.bins):
        inside = (value >= place / BINS) & ((value < (place + 1) / BINS) | (place == BINS - 1))
        assert item.pixels == inside.sum() and item.low == place / BINS
        if not item.pixels:
            assert item.accuracy is None
            continue
        assert item.accuracy == pytest.approx((truth == label)[inside].mean())
        assert item.confidence == pytest.approx(value[inside].mean())
        gap += inside.sum() * abs(item.accuracy - item.confidence)
    assert found.error == pytest.approx(gap / len(truth)) and 0 < found.error < 0.1
    assert found.bins[-1].high == 1 and sum(item.pixels for item in found.bins) == found.pixels


def test_curve(masks, data, pixels):
    found = evaluate(masks, data, progress=False).calibration
    truth, label, value = pixels
    assert [step.threshold for step in found.curve] == list(THRESHOLDS)
    assert THRESHOLDS[0] == 0.5 and THRESHOLDS[-1] == 0.99 and len(THRESHOLDS) == 11
    for step in found.curve:
        kept = value >= step.threshold
        assert step.kept == pytest.approx(kept.mean())
        assert step.accuracy == pytest.approx((truth == label)[kept].mean())
        assert step.miou == pytest.approx(mean_iou(truth[kept], label[kept]))
        assert step.classes == 4
    assert found.curve[-1].kept < found.curve[0].kept < 1


def test_level_on_the_threshold_is_kept():
    joint, right = np.zeros(3, np.uint16), np.ones(3, bool)
    level = np.array([203, 204, 255], np.uint8)  # 204 / 255 is 0.8
    found = calibrate(*calibration_counts(joint, right, level, 2))
    kept = {step.threshold: step.kept for step in found.curve}
    assert kept[0.75] == 1 and kept[0.8] == pytest.approx(2 / 3)
    assert kept[0.85] == pytest.approx(1 / 3) == kept[0.99]


def test_nothing_kept_is_undefined_in_json():
    found = calibrate(*calibration_counts(np.zeros(2, np.uint16), np.ones(2, bool),
                                          np.full(2, 90, np.uint8), 2))
    assert found.curve[0].kept == 0 and np.isnan(found.curve[0].miou)
    assert found.curve[0].classes == 0 and "0.90" not in found.note()
    assert calibrate(np.zeros((256, 2)), np.zeros((2, 2, 12))) is None


def test_json_and_note(masks, data):
    result = evaluate(masks, data, progress=False)
    saved = json.loads(json.dumps(result.to_json(), allow_nan=False))["calibration"]
    assert saved["error"] == result.calibration.error
    assert len(saved["bins"]) == 15 and set(saved["curve"][0]) == {
        "threshold", "kept", "accuracy", "miou", "classes"}
    assert any(f"calibration error {100 * saved['error']:.1f} %" in line
               for line in result.notes())


def test_masks_without_confidence(tmp_path, rows, data, masks, seeds):
    path = write_set(tmp_path / "bare", "masks", rows, mask_payload)
    for plain in (path, seeds):
        assert "calibration" not in evaluate(plain, data, progress=False).to_json()
    assert evaluate(masks, data, calibration=False, progress=False).calibration is None


def test_confidence_of_another_size_names_the_image(tmp_path, rows, data):
    def payload(row):
        label, level = noisy(row)
        level = level[:-1] if row.name == "img_04" else level
        return {"mask": encode_mask(label), "confidence": encode_mask(level)}

    path = write_set(tmp_path / "odd", "masks", rows, payload)
    with pytest.raises(UserError, match="img_04.*confidence"):
        evaluate(path, data, progress=False)


def test_report_shows_it(tmp_path, masks, data):
    run = tmp_path / "run"
    result = evaluate(masks, data, progress=False)
    result.save(run / "scores" / "lam.json")
    page = build_report(run).read_text()
    assert f"error {100 * result.calibration.error:.2f} %" in page
    assert page.count("<svg") == 2 and "reliability masks/lam" in page
    assert f"{100 * result.boundary_iou:.2f}" in page and "boundary IoU" in page
