"""Boundary IoU against erosions of single masks, and by hand at borders and ignored pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion

from more.data.shards.codec import encode_mask
from more.errors import UserError
from more.evaluation.boundary import band_width, boundary_counts, boundary_iou, outline_band
from more.evaluation.score import evaluate
from tests.evaluation.conftest import CLASSES, mask_payload, write_set

SIZES = st.tuples(st.integers(1, 13), st.integers(1, 13))
LABELS = SIZES.flatmap(lambda size: st.tuples(*[
    arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 1, 2, 255]), fill=st.just(1))] * 2))


def oracle_band(mask, ignored, width):
    """Mask less its erosion, one pixel at a time; outside the image is not in the mask."""
    eroded = mask | ignored
    for _ in range(width):
        eroded = binary_erosion(eroded, np.ones((3, 3)), border_value=0)
    return mask & ~eroded & ~ignored


def oracle(truth, label, classes, width):
    ignored = (truth >= classes) | (label == 255)
    out = np.zeros((3, classes), int)
    for k in range(classes):
        true, other = (oracle_band(side == k, ignored, width) for side in (truth, label))
        out[:, k] = (true & other).sum(), true.sum(), other.sum()
    return out


def share_of(width, size):
    return width / np.hypot(*size)


@settings(max_examples=150, deadline=None)
@given(LABELS, st.integers(1, 3))
def test_equals_erosion_of_every_mask(sides, width):
    truth, label = sides
    ignored = (truth == 255) | (label == 255)
    counts = boundary_counts(truth, label, ignored, 3, share_of(width, truth.shape))
    np.testing.assert_array_equal(counts, oracle(truth, label, 3, width))


@settings(max_examples=50, deadline=None)
@given(LABELS)
def test_ignored_pixels_do_not_matter(sides):
    """A prediction equal to the truth elsewhere is perfect, whatever it holds in ignored ones."""
    truth, other = sides
    label = np.where(truth == 255, other % 3, truth).astype(np.uint8)
    both, true, predicted = boundary_counts(truth, label, truth == 255, 3, 0.1)
    np.testing.assert_array_equal(both, true)
    np.testing.assert_array_equal(both, predicted)


def test_ignored_ring_makes_no_band_of_its_own():
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 10:30] = 255
    assert not outline_band(truth, truth == 255, 2)[2:-2, 2:-2].any()
    truth[:, 12:28] = 1  # a ring of two pixels: the band of width 3 reaches one pixel behind it
    inside = outline_band(truth, truth == 255, 3)[20]
    assert np.flatnonzero(inside).tolist() == [0, 1, 2, 9, 12, 27, 30, 37, 38, 39]


def test_mask_that_touches_the_border_has_a_band_there():
    full = np.ones((9, 9), np.uint8)
    band = outline_band(full, full == 255, 2)
    assert band.sum() == 81 - 25 and not band[2:-2, 2:-2].any()


def test_width_is_a_share_of_the_diagonal():
    assert band_width((300, 400), 0.02) == 10
    assert band_width((300, 400), 0.01) == 5
    assert band_width((10, 10), 0.02) == 1


def test_score_by_hand():
    counts = np.array([[3, 0, 0], [4, 2, 0], [5, 0, 0]])
    np.testing.assert_array_equal(boundary_iou(counts), [3 / 6, 0, np.nan])


@pytest.fixture
def masks(tmp_path, rows):
    def payload(row):
        mask = np.roll(np.where(row.truth == 255, 0, row.truth), 2, 1).astype(np.uint8)
        mask[20:24] = 255
        return {"mask": encode_mask(mask)}

    return write_set(tmp_path / "shifted", "masks", rows, payload)


def test_sums_over_the_set(masks, rows, data):
    result = evaluate(masks, data, boundary=0.05, progress=False)
    total = np.zeros((3, len(CLASSES) + 1))
    for row in rows:
        label = np.roll(np.where(row.truth == 255, 0, row.truth), 2, 1)
        label[20:24] = 255
        total += oracle(row.truth, label, len(CLASSES) + 1,
                        max(1, round(0.05 * np.hypot(*row.truth.shape))))
    expected = total[0] / (total[1] + total[2] - total[0])
    np.testing.assert_allclose(result.boundary, expected)
    out = result.to_json()
    assert out["boundary_iou"] == pytest.approx(expected.mean())
    assert out["classes"]["cat"]["boundary_iou"] == pytest.approx(expected[2])
    assert out["boundary_width"] == 0.05 and 0.1 < out["boundary_iou"] < 0.9


def test_off_and_out_of_range(masks, data):
    out = evaluate(masks, data, boundary=0, progress=False).to_json()
    assert "boundary_iou" not in out and "boundary_iou" not in out["classes"]["cat"]
    for share in (-0.1, 0.7, float("nan")):
        with pytest.raises(UserError, match="boundary"):
            evaluate(masks, data, boundary=share, progress=False)


def test_perfect_masks(tmp_path, rows, data):
    odd = [row for row in rows if int(row.name[-2:]) % 2]  # those without a wrong corner
    path = write_set(tmp_path / "good", "masks", odd, mask_payload)
    assert evaluate(path, data, progress=False).boundary_iou == 1
