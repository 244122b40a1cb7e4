"""Scores against the recorded ones of the release (metrics.npz)."""

import numpy as np
import pytest

from more.evaluation.metrics import confusion_matrix, f1, scores

TOLERANCE = 1e-9


def equal(actual, expected):
    """Same NaN, same infinities, and finite values within the tolerance."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("family, array", [("scores", "pred"), ("pseudo", "pseudo")])
def test_scores(parity, family, array):
    data = parity("metrics")
    classes = len(data[f"{family}.iou"])
    counts = sum(confusion_matrix(t, p, classes, pseudo=family == "pseudo")
                 for t, p in zip(data["gt"], data[array], strict=True))
    result = scores(counts)
    # A class with truth that is never predicted has no precision in the release, and none that
    # enters its means; here it has the worst one, so that missing a class never pays.
    missed = (counts.sum(axis=1) > 0) & (counts.diagonal() == 0)
    worst = {"precision": 0.0, "confusion": np.inf}
    equal(result.pixel_accuracy, data[f"{family}.pAcc"])
    equal(result.mean_accuracy, data[f"{family}.mAcc"])
    for name in ("miou", "iou", "precision", "recall", "confusion"):
        if f"{family}.{name}" in data:
            expected = data[f"{family}.{name}"]
            if name in worst:
                expected = np.where(missed & np.isnan(expected), worst[name], expected)
            equal(getattr(result, name), expected)


def test_predictions_outside_the_classes_fail(parity):
    data = parity("metrics")
    classes = len(data["scores.iou"])
    assert (data["pseudo"] == 255).any()
    with pytest.raises(ValueError, match="255"):
        confusion_matrix(data["gt"], data["pseudo"], classes)


def test_inputs_stay_as_they_are(parity):
    data = parity("metrics")
    before = data["pseudo"].copy()
    confusion_matrix(data["gt"], data["pseudo"], len(data["scores.iou"]), pseudo=True)
    np.testing.assert_array_equal(before, data["pseudo"])


def test_f1_of_tags(parity):
    data = parity("metrics")
    equal(f1(data["f1.true"], data["f1.pred"]), data["f1.score"])
    for row, expected in enumerate(data["f1.score"]):
        equal(f1(data["f1.true"][row], data["f1.pred"][row]), expected)
