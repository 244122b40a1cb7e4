"""Confusion counts and scores on cases small enough to do by hand."""

import numpy as np
import pytest

from more.evaluation.metrics import confusion_matrix, dominant, f1, mean_over, scores


def test_counts_by_hand():
    truth, predicted = np.array([[0, 0, 1], [1, 2, 255]]), np.array([[0, 1, 1], [2, 2, 0]])
    assert confusion_matrix(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_sums_over_images_equal_one_count():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (2, 7, 9, 8))
    parts = sum(confusion_matrix(t, p, 5) for t, p in zip(truth, predicted, strict=True))
    assert (parts == confusion_matrix(truth, predicted, 5)).all()


def test_scores_by_hand():
    result = scores(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    np.testing.assert_allclose(result.iou, [6 / 9, 3 / 6, np.nan])
    np.testing.assert_allclose(result.precision, [6 / 7, 3 / 5, np.nan])
    np.testing.assert_allclose(result.recall, [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(result.confusion, [1 / 6, 2 / 3, np.nan])
    assert result.pixel_accuracy == pytest.approx(9 / 12)
    assert result.miou == pytest.approx((6 / 9 + 3 / 6) / 2)


def test_class_that_is_predicted_only():
    result = scores(np.array([[6, 2], [0, 0]]))
    assert np.isinf(result.confusion[1]) and np.isnan(result.recall[1])
    assert result.iou[1] == 0 and result.miou == pytest.approx(6 / 8)


def test_nothing_to_count_is_nan_not_a_crash():
    truth = np.full((4, 4), 255)
    counts = confusion_matrix(truth, np.zeros((4, 4)), 3)
    assert counts.sum() == 0
    assert np.isnan(scores(counts).miou) and np.isnan(scores(counts).pixel_accuracy)


@pytest.mark.parametrize("value", [3, 255, -1])
def test_prediction_outside_the_classes(value):
    truth, predicted = np.zeros((2, 2), int), np.array([[0, 0], [0, value]])
    with pytest.raises(ValueError, match=str(value)):
        confusion_matrix(truth, predicted, 3)
    truth[1, 1] = 255
    assert confusion_matrix(truth, predicted, 3).sum() == 3


def test_pseudo_variant_leaves_out_255_only():
    truth, predicted = np.array([0, 1, 1]), np.array([0, 255, 1])
    assert confusion_matrix(truth, predicted, 2, pseudo=True).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="9"):
        confusion_matrix(truth, np.array([0, 9, 1]), 2, pseudo=True)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2)


def test_f1_of_empty_images_is_zero():
    assert f1(np.zeros((2, 4)), np.array([[0, 0, 0, 0], [1, 0, 0, 0]])).tolist() == [0, 0]
    assert f1(np.array([1, 1, 0]), np.array([1, 0, 0])) == pytest.approx(2 / 3)


def test_missing_a_class_never_pays():
    """The rule for means: a class with truth and no right pixel has 0 everywhere and FP/TP = inf.

    Were it left out, a method that gives class 2 up would gain in every mean.
    """
    tried = scores(np.array([[90, 5, 5], [5, 40, 5], [5, 5, 10]]))
    gave_up = scores(np.array([[95, 5, 0], [10, 40, 0], [15, 5, 0]]))
    only_wrong = scores(np.array([[90, 5, 5], [5, 40, 5], [15, 5, 0]]))
    there = np.ones(3, bool)
    for missed in (gave_up, only_wrong):
        assert [missed.iou[2], missed.precision[2], missed.recall[2]] == [0, 0, 0]
        assert missed.confusion[2] == np.inf
        assert missed.miou < tried.miou and missed.mean_accuracy < tried.mean_accuracy
        assert mean_over(missed.precision, there) < mean_over(tried.precision, there)
        assert np.isnan(mean_over(missed.confusion, there))
    assert mean_over(gave_up.precision, there) == pytest.approx((95 / 120 + 40 / 50 + 0) / 3)
    assert mean_over(tried.confusion, there) == pytest.approx((10 / 90 + 10 / 40 + 10 / 10) / 3)


def test_infinite_values_stay_out_of_means():
    """No mean is infinite, and none is made of what is left beside an infinite value."""
    chosen = np.ones(3, bool)
    assert np.isnan(mean_over(np.array([1.0, np.inf, 2.0]), chosen))
    assert mean_over(np.array([1.0, np.inf, 2.0]), np.array([True, False, True])) == 1.5
    assert mean_over(np.array([1.0, np.nan, 2.0]), chosen) == 1.5
    assert np.isnan(mean_over(np.full(3, np.nan), chosen))


def test_a_class_that_is_left_unlabelled_is_missed():
    """255 on all pixels of a class must not take it out of the means."""
    counted = np.array([[8, 0], [0, 0]])
    assert scores(counted).miou == 1
    found = scores(counted, np.array([8, 5]))
    assert found.iou.tolist() == [1, 0] and found.precision.tolist() == [1, 0]
    assert found.miou == 0.5 and found.confusion[1] == np.inf


def test_one_class_that_makes_more_than_half_of_a_mean():
    every = np.ones(4, bool)
    assert dominant(np.array([1.0, 9.0, 2.0, 1.0]), every) == 1
    assert dominant(np.array([1.0, 4.0, 2.0, 1.0]), every) is None, "exactly half is not more"
    assert dominant(np.array([1.0, 9.0, 2.0, 1.0]), np.array([1, 0, 1, 1], bool)) is None
    assert dominant(np.array([1.0, np.inf, 2.0, 1.0]), every) is None, "no mean at all"
    assert dominant(np.array([1.0, 9.0]), np.ones(2, bool)) is None
    assert dominant(np.array([0.1, np.nan, 9.0, 0.2]), every) == 2
    assert dominant(np.zeros(4), every) is None
