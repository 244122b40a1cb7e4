"""Axes, points and what shares a CRF run."""

from __future__ import annotations

import pytest

from more.errors import UserError
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement
from more.tuning.grid import (
    DEFAULT,
    DEFAULT_DECODER,
    Axis,
    crf_groups,
    grid_points,
    parse_grid,
    settings_at,
)


def test_axes_are_sorted_and_free_of_repetitions():
    assert parse_grid(["crf.iterations=10, 5,5", "ignore_below=0.7,0"]) == [
        Axis("crf.iterations", (5.0, 10.0)), Axis("ignore_below", (0.0, 0.7))]


@pytest.mark.parametrize(("text", "words"), [
    ("treshold=0.4", "did you mean threshold"), ("bilateral_rgb=3", "crf.bilateral_rgb"),
    ("crf.bilateral_rbg=3", "crf.bilateral_rgb"), ("crf.bilateral_rgb=3,x", "'x' is not a number"),
    ("crf.bilateral_rgb=0", "crf.bilateral_rgb is 0"), ("crf.bilateral_rgb=inf", "is inf"),
    ("crf.bilateral_rgb=3,1e-8", "at least 0.1 grey levels"),
    ("crf.bilateral_xy=0.05", "at least 0.1 pixels"), ("crf.gaussian_xy=0.05", "at least 0.1"),
    ("crf.iterations=2.5", "whole number"), ("crf.iterations=nan", "is nan"),
    ("threshold=0", "threshold is 0"), ("threshold=nan", "threshold is nan"),
    ("ignore_below=1.5", "ignore_below is 1.5"), ("threshold=", "no value"),
    ("threshold", "no value"), ("zzz=1", "choose from threshold")])
def test_a_bad_axis_is_refused(text, words):
    with pytest.raises(UserError) as error:
        parse_grid([text])
    assert words in str(error.value)


def test_a_key_twice_is_refused():
    with pytest.raises(UserError, match="given twice"):
        parse_grid(["threshold=0.4", "threshold=0.5"])


def test_points_are_the_product_with_the_last_axis_fastest():
    base = Refinement(CRFParams(gaussian_compat=7))
    axes = parse_grid(["threshold=0.4,0.5", "ignore_below=0,0.7", "crf.bilateral_xy=30"])
    points = grid_points(base, axes)
    assert [(how.threshold, how.ignore_below) for how in points] == [
        (0.4, None), (0.4, 0.7), (0.5, None), (0.5, 0.7)]
    assert all(how.params == CRFParams(gaussian_compat=7, bilateral_xy=30) for how in points)
    assert settings_at(points[0], axes) == {"threshold": 0.4, "ignore_below": 0.0,
                                            "crf.bilateral_xy": 30.0}


def test_random_points_follow_the_seed_and_a_large_product_is_refused_without():
    values = ",".join(str(0.01 * n) for n in range(1, 100))
    axes = parse_grid([f"threshold={values}", f"ignore_below={values}",
                       "crf.bilateral_rgb=" + ",".join(str(n) for n in range(1, 100))])
    with pytest.raises(UserError, match="970299 points"):
        grid_points(Refinement(), axes)
    some = grid_points(Refinement(), axes, 20, seed=1)
    assert len(set(some)) == 20 and some == grid_points(Refinement(), axes, 20, seed=1)
    assert some != grid_points(Refinement(), axes, 20, seed=2)
    few = parse_grid(["threshold=0.4,0.5"])
    assert grid_points(Refinement(), few, 20) == grid_points(Refinement(), few)


def test_points_that_differ_after_the_crf_share_its_run():
    axes = parse_grid(["ignore_below=0,0.5,0.7", "threshold=0.4,0.5"])
    groups = crf_groups([*grid_points(Refinement(), axes), Refinement()])
    assert [[how.ignore_below for how in group] for group in groups] == [[None, 0.5, 0.7]] * 2
    assert [group[0].threshold for group in groups] == [0.4, 0.5]


def test_the_default_grids_can_be_read():
    assert len(grid_points(Refinement(), parse_grid(DEFAULT))) == 12
    assert len(grid_points(Refinement(), parse_grid(DEFAULT_DECODER))) == 9
    assert Refinement() in grid_points(Refinement(), parse_grid(DEFAULT))
    assert Refinement() in grid_points(Refinement(), parse_grid(DEFAULT_DECODER))
