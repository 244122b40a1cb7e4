"""Dense CRF against the release's run of pydensecrf2 (crf.npz, method §4.12)."""

import numpy as np
import pytest

from more.data.seeds import SeedItem, seed_probabilities
from more.errors import UserError
from more.filtering.crf import CRFParams, refine, resolve_engine
from more.refinement.image import Refinement, refine_item
from tests.parity.compare import close, equal

ENGINES = ["fast", "pydensecrf", "lattice"]


def params(data):
    iterations, xy, compat, wide_xy, wide_rgb, wide_compat = data["hyper"].tolist()
    return CRFParams(iterations, xy, compat, wide_xy, wide_rgb, wide_compat)


def check(actual, q, label, keys, engine):
    """pydensecrf: marginals to 1e-4, labels exact; another engine: labels on 99 %.

    A pixel near a tie may flip with another engine, so its marginals are compared by the mean. The
    place kernel of `fast` is a true Gaussian, that of the release is one on a lattice, which these
    small images of much noise show (`test_without_the_place_kernel_fast_is_the_same`).
    """
    found = keys[actual.argmax(0)]
    assert np.abs(actual - q).mean() < (2.5e-3 if engine == "fast" else 1e-3)
    if engine == "pydensecrf":
        close(actual, q, 1e-4)
        equal(found, label)
    assert (found == label).mean() >= 0.99


def skip_without(engine):
    try:
        resolve_engine(engine)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("engine", ENGINES)
def test_maps(parity, engine):
    skip_without(engine)
    data = parity("crf")
    for i, image in enumerate(data["images"]):
        keys = np.concatenate([[0], data[f"{i}.keys"] + 1])
        actual = refine(image, data[f"{i}.lam.prob_in"], params(data), engine)
        check(actual, data[f"{i}.lam.q"], data[f"{i}.lam.label"], keys, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_segmentation(parity, engine):
    skip_without(engine)
    data = parity("crf")
    for i, image in enumerate(data["images"]):
        logits = data[f"{i}.seg.logits"]
        exp = np.exp(logits - logits.max(0))
        actual = refine(image, exp / exp.sum(0), params(data), engine)
        keys = np.arange(len(logits))
        check(actual, data[f"{i}.seg.q"], data[f"{i}.seg.label"], keys, engine)


def test_probabilities_from_maps(parity):
    data = parity("crf")
    for i in range(len(data["images"])):
        maps = data[f"{i}.lams"]
        keys, probs = seed_probabilities(SeedItem(data[f"{i}.keys"] + 1, maps), maps.shape[1:])
        equal(keys[1:], data[f"{i}.keys"] + 1)
        close(probs, data[f"{i}.lam.prob_in"], 1e-6)


def test_the_worker_gives_the_recorded_labels(parity):
    skip_without("pydensecrf")
    data = parity("crf")
    for i, image in enumerate(data["images"]):
        item = SeedItem(data[f"{i}.keys"] + 1, data[f"{i}.lams"])
        label, confidence = refine_item(image, item, Refinement(params(data), "pydensecrf"))
        equal(label, data[f"{i}.lam.label"])
        equal(confidence, np.rint(255 * data[f"{i}.lam.q"].max(0)))
