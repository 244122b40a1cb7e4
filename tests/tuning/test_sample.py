"""The labelled sample."""

from __future__ import annotations

import numpy as np
import pytest

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.tuning.sample import _pick, choose_sample
from tests.tuning.sets import labelled_sets


def pick(tags, count, seed=0, labelled=lambda row: True):
    tags = np.asarray(tags, bool)
    return _pick(tags, np.random.default_rng(seed).permutation(len(tags)), count, labelled)


def test_every_class_is_there_as_far_as_possible():
    tags = np.zeros((500, 5), bool)
    tags[:, 0] = True  # a class that every image shows
    for column in range(1, 5):
        tags[100 * column, column] = True  # the others are rare
    for seed in range(20):
        rows = pick(tags, 5, seed)
        assert len(set(rows)) == 5 and tags[rows].any(0).all()


def test_classes_get_equal_shares():
    tags = np.repeat(np.eye(3, dtype=bool), [900, 60, 40], 0)
    assert np.abs(tags[pick(tags, 30)].sum(0) - 10).max() == 0


def test_a_class_on_every_image_takes_no_places_from_others():
    tags = np.ones((100, 2), bool)
    tags[50:, 1] = False
    for seed in range(5):
        assert tags[pick(tags, 10, seed), 1].sum() >= 9


def test_images_without_class_come_last_and_all_are_found():
    tags = np.array([[0, 0], [1, 0], [0, 0], [0, 1], [1, 1]])
    assert sorted(pick(tags, 3)) == [1, 3, 4]
    assert sorted(pick(tags, 9)) == [0, 1, 2, 3, 4]


def test_images_without_mask_are_passed_over_and_asked_once():
    asked = []
    rows = pick(np.ones((20, 3)), 5, labelled=lambda row: asked.append(row) or row % 2 == 1)
    assert len(rows) == 5 and all(row % 2 for row in rows)
    assert len(asked) == len(set(asked))


def test_the_same_images_for_the_same_seed(tmp_path):
    seeds, data = map(ShardSet, labelled_sets(tmp_path, bare=("image-03", "image-07")))
    one, again, other = (choose_sample(seeds, data, 5, seed) for seed in (3, 3, 4))
    assert one == again and one.ids != other.ids and one.rows == sorted(one.rows)
    assert one.ids == [seeds.ids[row] for row in one.rows]
    assert list(one.per_class.values()) == seeds.tags[one.rows].sum(0).tolist()
    every = choose_sample(seeds, data, 99, 0)
    assert every.ids == [name for name in seeds.ids if name not in ("image-03", "image-07")]
    assert every.absent == [] and one.per_class.keys() == dict.fromkeys(data.class_names).keys()


def test_a_set_without_masks_is_refused(tmp_path):
    names = tuple(f"image-{n:02d}" for n in range(3))
    seeds, data = map(ShardSet, labelled_sets(tmp_path, count=3, bare=names))
    with pytest.raises(UserError, match="no image has a true mask"):
        choose_sample(seeds, data, 5, 0)
    with pytest.raises(UserError, match="--images 0"):
        choose_sample(seeds, data, 0, 0)
