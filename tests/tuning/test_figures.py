"""Scores of points and the bootstrap of their difference."""

from __future__ import annotations

import numpy as np
import pytest

from more.evaluation.metrics import scores
from more.tuning.figures import compare, score_point


def counts(seed: int, hit: int, images: int = 12, classes: int = 4, left_out: int = 0):
    """Random counts [N, K, K + 1]; the larger `hit`, the better."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 20, (images, classes, classes + 1))
    out[:, :, -1] = left_out
    for c in range(classes):
        out[:, c, c] += hit
    return out


def test_scores_are_those_of_the_kept_pixels():
    given = counts(0, 50, left_out=3)
    found = score_point(given)
    expected = scores(given.sum(0)[:, :-1])
    assert found.scores.miou == expected.miou and np.array_equal(found.scores.iou, expected.iou)
    assert found.kept == pytest.approx(1 - given[..., -1].sum() / given.sum())
    assert found.miou_all < found.scores.miou
    assert found.precision == pytest.approx(expected.precision.mean())
    assert found.recall == pytest.approx(expected.recall.mean())


def test_without_pixels_left_out_both_miou_agree():
    found = score_point(counts(0, 50))
    assert (found.kept, found.miou_all) == (1.0, found.scores.miou)


def test_the_bootstrap_is_that_of_a_plain_loop():
    given = [counts(seed, hit) for seed, hit in ((0, 40), (1, 41), (2, 42))]
    for array in given:  # class 3: in three images only, so some draws miss it
        array[3:, 3] = array[3:, :, 3] = 0
    points = [score_point(array) for array in given]
    found = compare(points, 2, 0, [1, 2], seed=5, draws=200)
    gains, honest = [], []
    for picks in np.random.default_rng(5).integers(0, 12, (200, 12)):
        rest = [n for n in range(12) if n not in picks]
        inside = [scores(array[picks].sum(0)[:, :-1]).miou for array in given]
        outside = [scores(array[rest].sum(0)[:, :-1]).miou for array in given]
        gains.append(inside[2] - inside[0])
        honest.append(outside[max((1, 2), key=lambda n: inside[n])] - outside[0])
    assert found.low == pytest.approx(np.percentile(gains, 2.5), abs=1e-12)
    assert found.high == pytest.approx(np.percentile(gains, 97.5), abs=1e-12)
    assert found.unseen == pytest.approx(np.mean(honest), abs=1e-12)
    assert found.unseen_positive == pytest.approx(np.mean(np.array(honest) > 0))
    assert found.miou == points[2].scores.miou - points[0].scores.miou and found.draws == 200


def test_noise_is_told_from_a_gain():
    noise = [score_point(counts(seed, 40)) for seed in range(9)]
    best = max(range(9), key=lambda n: noise[n].scores.miou)
    found = compare(noise, best, (best + 1) % 9, list(range(9)), seed=0)
    # The best of equals looks better on its own images, and is not on others.
    assert found.miou > 0 and found.unseen < found.miou
    clear = compare([score_point(counts(0, 40)), score_point(counts(1, 90))], 1, 0, [0, 1], seed=0)
    assert clear.certain and clear.unseen_positive == 1
    assert clear.low < clear.miou < clear.high


def test_the_same_seed_gives_the_same_interval():
    points = [score_point(counts(seed, 40)) for seed in range(3)]
    assert compare(points, 1, 0, [0, 1, 2], 3) == compare(points, 1, 0, [0, 1, 2], 3)
    assert compare(points, 1, 0, [0, 1, 2], 3) != compare(points, 1, 0, [0, 1, 2], 4)


def test_one_image_has_no_interval():
    points = [score_point(counts(seed, 40, images=1)) for seed in range(2)]
    found = compare(points, 1, 0, [0, 1], 0)
    assert (found.low, found.unseen, found.draws) == (None, None, 0) and not found.certain


def test_a_class_that_a_point_leaves_unlabelled_is_missed():
    """255 on all pixels of class 3 must not raise the mIoU of a point, nor its bootstrap."""
    given = counts(0, 50)
    given[:, 3, -1] = given[:, 3].sum(1)
    given[:, 3, :-1] = 0
    found = score_point(given)
    assert found.scores.iou[3] == 0 and found.miou_all == pytest.approx(found.scores.miou)
    same = compare([found, score_point(counts(0, 50))], 1, 0, [1], seed=0, draws=20)
    assert same.low > 0.05
