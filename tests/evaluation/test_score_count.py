"""Counting without torch, in pieces, over threads."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from more.data.shards import reader
from more.data.shards.codec import encode_mask
from more.data.shards.open_files import Descriptors, OpenFiles
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation import score_count as module
from more.evaluation.metrics import confusion_matrix, joint_labels, joint_matrix
from more.evaluation.score import evaluate
from more.evaluation.score_count import Counts, count_piece, pieces
from tests.evaluation.conftest import LAM, REFINED, write_set
from tests.evaluation.test_calibration import noisy_payload

PAIRS = st.integers(2, 255).flatmap(lambda k: st.tuples(
    st.just(k), arrays(np.uint8, (6, 7), elements=st.integers(0, 255)),
    arrays(np.uint8, (6, 7), elements=st.one_of(st.integers(0, k - 1), st.just(255)))))


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_equal_to_torchmetrics(pair):
    k, truth, label = pair
    counted, joint = joint_labels(truth, label, k)
    matrix = joint_matrix(joint, k)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, label, k, pseudo=True).numpy())
    np.testing.assert_array_equal(counted, (truth < k) & (label != 255))


def test_refuses_what_torchmetrics_refuses():
    truth = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="7"):
        joint_labels(truth, np.array([[0, 0], [0, 7]], np.uint8), 3)
    with pytest.raises(ValueError, match="shape"):
        joint_labels(truth, truth[:1], 3)
    ignored, label = np.full((2, 2), 255, np.uint8), np.full((2, 2), 7, np.uint8)
    assert joint_labels(ignored, label, 3)[1].size == 0


@pytest.fixture(scope="module")
def masks(tmp_path_factory, rows):
    return write_set(tmp_path_factory.mktemp("count") / "masks" / "lam", "masks", rows,
                     noisy_payload, REFINED, shards=4)


def test_pieces_lie_in_one_shard_each(masks, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 3)
    source = ShardSet(masks)
    pairs = [(item, item + 100) for item in range(len(source)) if item != 6]
    parts = pieces(source, pairs)
    assert [pair for part in parts for pair in part] == pairs
    assert [len(part) for part in parts] == [3, 2, 3, 1, 3, 2, 3, 2]
    for part in parts:
        assert len({source.locate(item)[0] for item, _ in part}) == 1


def test_workers_do_not_change_figures(masks, data):
    one, three = (evaluate(masks, data, workers=n, progress=False) for n in (1, 3))
    assert json.dumps(one.to_json()) == json.dumps(three.to_json())
    assert list(one.per_image.items()) == list(three.per_image.items())
    assert list(three.per_image) == ShardSet(masks).ids
    assert one.calibration is not None and one.boundary is not None


def test_threads_share_a_set_with_one_open_file(masks, data, monkeypatch):
    """A file that a thread reads is not closed by another that needs room."""
    expected = evaluate(masks, data, workers=1, progress=False)
    tight = Descriptors(limit=1)
    monkeypatch.setattr(reader, "OpenFiles", lambda: OpenFiles(tight))
    monkeypatch.setattr(module, "PIECE", 1)
    found = evaluate(masks, data, workers=8, progress=False)
    assert found.per_image == expected.per_image and found.miou == expected.miou
    assert len(tight._files) <= 1


def test_error_in_a_thread_names_the_image(tmp_path, rows, data):
    def payload(row):
        mask = np.full_like(row.truth, 9 if row.name == "img_13" else 0)
        return {"mask": encode_mask(mask)}

    path = write_set(tmp_path / "bad", "masks", rows, payload, LAM)
    with pytest.raises(UserError, match="img_13.*9") as error:
        evaluate(path, data, workers=2, progress=False)
    assert error.value.fix


def test_parts_sum_to_the_whole(masks, data):
    source, truth = ShardSet(masks), ShardSet(data)
    job = module.Job(4, 0.5, False, 0, False)
    whole, half = count_piece(job, source, truth, [(0, 0), (1, 1)]), Counts()
    for row in (0, 1):
        half.merge(count_piece(job, source, truth, [(row, row)]))
    np.testing.assert_array_equal(whole.sums["matrix"], half.sums["matrix"])
    assert whole.per_image == half.per_image and set(whole.sums) == {"matrix", "truth"}


def test_workers_below_one(masks, data):
    with pytest.raises(UserError, match="0 workers"):
        evaluate(masks, data, workers=0, progress=False)
