"""The picture: what stands where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from more.tuning.heat_map import best_along, draw, influence, parse_axes, picture_bytes
from more.tuning.tune import tune
from tests.tuning.sets import ALL, INLINE, labelled_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return labelled_sets(tmp_path_factory.mktemp("sets"), count=6)


@pytest.fixture(scope="module")
def found(sets, tmp_path_factory):
    """A search over three settings, with the reference on the grid, and its folder."""
    out = tmp_path_factory.mktemp("found")
    grid = ("threshold=0.35,0.5,0.6", "crf.bilateral_rgb=3,20", "ignore_below=0,0.6")
    return tune(*sets, out, replace(ALL, grid=grid, min_kept=0.0), **INLINE)[0], out


def texts(plot):
    return [text.get_text() for text in plot.texts]


def test_the_map_shows_the_best_over_the_other_settings(found):
    result, _ = found
    keys = ("threshold", "crf.bilateral_rgb")
    figure = draw(result, parse_axes(",".join(keys), result.axes))
    plot = figure.subfigs[0].axes[0]
    assert (plot.get_xlabel(), plot.get_ylabel()) == keys
    assert [tick.get_text() for tick in plot.get_xticklabels()] == ["0.35", "0.5", "0.6"]
    assert [tick.get_text() for tick in plot.get_yticklabels()] == ["3", "20"]
    shown = np.asarray(plot.images[0].get_array())
    for row, rgb in enumerate((3, 20)):
        for column, threshold in enumerate((0.35, 0.5, 0.6)):
            best = max(point.scores.miou for how, point in
                       zip(result.points, result.scores, strict=True)
                       if (how.threshold, how.params.bilateral_rgb) == (threshold, rgb))
            assert shown[row, column] == pytest.approx(100 * best)
            assert texts(plot)[3 * row + column] == f"{100 * best:.1f}"
    assert "12 labelled" not in figure.get_suptitle() and "6 labelled" in figure.get_suptitle()


def test_frames_mark_the_best_and_the_reference(found):
    result, _ = found
    plot = draw(result, parse_axes("threshold,crf.bilateral_rgb", result.axes)).subfigs[0].axes[0]
    where = {patch.get_label(): np.add(patch.get_xy(), patch.get_width() / 2)
             for patch in plot.patches}
    assert where["configured"].tolist() == [1, 0]
    best = result.points[result.best]
    assert where["best"] == pytest.approx([(0.35, 0.5, 0.6).index(best.threshold),
                                           (3, 20).index(best.params.bilateral_rgb)])
    assert [text.get_text() for text in plot.get_legend().get_texts()] == ["configured", "best"]


def test_the_most_influential_settings_are_chosen(found):
    result, _ = found
    ranked = sorted(result.axes, key=lambda axis: -influence(result, axis))
    figure = draw(result)
    plot = figure.subfigs[0].axes[0]
    assert {plot.get_xlabel(), plot.get_ylabel()} == {axis.key for axis in ranked[:2]}
    curve, = figure.subfigs[1].axes
    assert curve.get_xlabel() == ranked[2].key
    assert np.array_equal(curve.lines[0].get_ydata(), 100 * best_along(result, [ranked[2]]),
                          equal_nan=True)
    assert influence(result, ranked[0]) > influence(result, ranked[2])


def test_one_setting_is_a_curve_and_untried_places_are_blank(sets, tmp_path):
    result, _ = tune(*sets, tmp_path, replace(ALL, grid=("threshold=0.3,0.4,0.6",
                                                         "crf.bilateral_xy=67")), **INLINE)
    curve, = draw(result).subfigs[0].axes
    assert curve.get_xlabel() == "threshold" and curve.get_ylabel() == "mIoU"
    assert curve.lines[0].get_xdata().tolist() == [0.3, 0.4, 0.6]
    few = replace(ALL, grid=("threshold=0.3,0.4,0.6", "crf.bilateral_rgb=4,20"), random=2)
    result, _ = tune(*sets, tmp_path, few, **INLINE)
    plot = draw(result).subfigs[0].axes[0]
    assert texts(plot).count("–") == 4
    assert [patch.get_label() for patch in plot.patches] in (["best"], [])  # 0.5 is not on the grid


def test_the_file_is_a_png_and_the_same_each_time(found):
    result, out = found
    data = (out / "tune.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data == picture_bytes(draw(result))
