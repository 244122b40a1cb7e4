"""Seeds: storage and the way to image size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from more.data.seeds import (
    SeedItem,
    decode_seed,
    encode_seed,
    seed_label,
    seed_probabilities,
)


@st.composite
def seeds(draw, background: bool | None = None) -> SeedItem:
    keys = sorted(draw(st.sets(st.integers(1, 254), max_size=5)))
    if draw(st.booleans()) if background is None else background:
        keys = [0, *keys]
    shape = (len(keys), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    values = st.floats(0, 1, width=16)
    return SeedItem(np.array(keys, np.uint16), draw(hnp.arrays(np.float16, shape, elements=values)))


@given(seeds())
def test_round_trip(item):
    back = decode_seed(encode_seed(item))
    assert back.maps.dtype == np.float16 and back.keys.dtype == np.uint16
    np.testing.assert_array_equal(back.keys, item.keys)
    np.testing.assert_array_equal(back.maps, item.maps)


@given(seeds(), st.data())
def test_damaged_bytes_are_refused(item, data):
    stored = encode_seed(item)
    with pytest.raises(ValueError):
        decode_seed(stored[:data.draw(st.integers(0, len(stored) - 1))])
    with pytest.raises(ValueError):
        decode_seed(stored + b"\0")


@pytest.mark.parametrize("keys, maps", [
    ([2, 1], np.zeros((2, 3, 3))), ([1, 1], np.zeros((2, 3, 3))), ([255], np.zeros((1, 3, 3))),
    ([1], np.zeros((2, 3, 3))), ([1], np.full((1, 3, 3), np.nan)), ([1], np.full((1, 3, 3), 1e6)),
])
def test_impossible_seeds_are_refused(keys, maps):
    with pytest.raises(ValueError):
        encode_seed(SeedItem(np.array(keys), maps))


@settings(max_examples=50)
@given(seeds(), st.tuples(st.integers(1, 20), st.integers(1, 20)), st.floats(0, 1))
def test_no_class_but_those_of_the_seed(item, size, threshold):
    keys, probs = seed_probabilities(item, size)
    assert keys[0] == 0 and set(keys[1:]) == set(item.keys) - {0}
    assert probs.shape == (len(keys), *size) and probs.dtype == np.float32
    assert set(np.unique(seed_label(item, size, threshold))) <= {0, *item.keys.tolist()}


@pytest.mark.parametrize("count, small, size", [
    (1, (28, 28), (75, 100)), (5, (32, 24), (61, 97)), (21, (20, 30), (18, 12)),
    (150, (3, 2), (9, 7)),
])
def test_resizing_is_bilinear_with_corners_not_aligned(count, small, size):
    rng = np.random.default_rng(0)
    maps = rng.random((count, *small)).astype(np.float16)
    _, probs = seed_probabilities(SeedItem(np.arange(count), maps), size)
    expected = F.interpolate(torch.from_numpy(maps)[None].float(), size, mode="bilinear")[0]
    np.testing.assert_allclose(probs, expected.numpy(), atol=1e-5)


def test_background_is_what_no_class_claims():
    item = SeedItem(np.array([3, 7]), np.array([[[0.25]], [[0.75]]], np.float16))
    keys, probs = seed_probabilities(item, (2, 2))
    assert keys.tolist() == [0, 3, 7] and probs[:, 0, 0].tolist() == [0.25, 0.25, 0.75]


def test_explicit_background_is_used_as_it_is():
    item = SeedItem(np.array([0, 7]), np.array([[[0.375]], [[0.25]]], np.float16))
    keys, probs = seed_probabilities(item, (2, 2))
    assert keys.tolist() == [0, 7] and probs[:, 1, 1].tolist() == [0.375, 0.25]
    assert not seed_label(item, (2, 2), threshold=0.1).any()


def test_a_value_on_the_threshold_is_background():
    item = SeedItem(np.array([4, 9]), np.array([[[0.5, 0.75]], [[0.25, 0.75]]], np.float16))
    assert seed_label(item, (1, 2), 0.5).tolist() == [[0, 4]]  # first of equals
    assert seed_label(item, (1, 2), 0.75).tolist() == [[0, 0]]


def test_no_class_is_all_background():
    item = SeedItem(np.zeros(0), np.zeros((0, 4, 4)))
    keys, probs = seed_probabilities(decode_seed(encode_seed(item)), (3, 5))
    assert keys.tolist() == [0] and (probs == 1).all() and probs.shape == (1, 3, 5)
