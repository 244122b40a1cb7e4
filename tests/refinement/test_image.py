"""What decides the content of a mask: threshold, disagreement, and what is recorded of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from more.data.seeds import SeedItem, seed_label, seed_probabilities
from more.data.shards.manifest import read_manifest, write_manifest
from more.errors import UserError
from more.evaluation.routes import describe_route
from more.filtering.crf import CRFParams, refine
from more.refinement.image import Refinement, refine_item
from more.refinement.refine import refine as refine_set
from tests.refinement.sets import make_sets, smooth_maps, textured

FAST = CRFParams(iterations=3)
NO_CRF = CRFParams(iterations=0)  # the marginals are the normalised input


def item(count: int = 3, seed: int = 0) -> SeedItem:
    rng = np.random.default_rng(seed)
    return SeedItem(np.arange(1, count + 1), smooth_maps(rng, count, 8, 9))


def image(seed: int = 0) -> np.ndarray:
    return textured(np.random.default_rng(seed), 50, 62)


def test_the_released_threshold_changes_no_bit():
    _, probs = seed_probabilities(item(), (50, 62), 0.5)
    maps = seed_probabilities(item(), (50, 62))[1][1:]
    assert np.array_equal(probs[0], 1.0 - maps.max(0)) and np.array_equal(probs[1:], maps)
    label, confidence = refine_item(image(), item(), Refinement(FAST))
    q = refine(image(), probs, FAST)
    assert np.array_equal(label, q.argmax(0))  # keys are 0, 1, 2, 3
    assert np.array_equal(confidence, np.rint(255 * q.max(0).clip(0, 1)))


def test_maps_are_bent_piecewise_linearly_before_the_background_is_taken():
    values = np.array([[[0.0, 0.125, 0.25, 0.625, 1.0]], [[0.0, 0.25, 0.0, 0.25, 0.0]]], np.float16)
    keys, probs = seed_probabilities(SeedItem([3, 7], values), (1, 5), 0.25)
    assert keys.tolist() == [0, 3, 7]
    assert probs[1, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert probs[2, 0].tolist() == [0, 0.5, 0, 0.5, 0]
    assert probs[0, 0].tolist() == [1, 0.5, 0.5, 0.25, 0] and probs.dtype == np.float32


@pytest.mark.parametrize("threshold", [0.3, 0.35, 0.5, 0.8])
def test_without_mean_field_steps_the_mask_is_the_thresholded_seed(threshold):
    how = Refinement(NO_CRF, threshold=threshold)
    label, _ = refine_item(image(), item(1), how)
    wanted = seed_label(item(1), (50, 62), threshold)
    assert (label == wanted).mean() > 0.999 and 0 < (wanted > 0).mean() < 1


def test_a_lower_threshold_gives_more_foreground():
    parts = [(refine_item(image(), item(), Refinement(FAST, threshold=t))[0] > 0).mean()
             for t in (0.3, 0.5, 0.7, 0.9)]
    assert parts == sorted(parts, reverse=True) and parts[0] > parts[-1] + 0.1


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.2, float("nan")])
def test_thresholds_that_mean_nothing_are_refused(threshold):
    with pytest.raises(UserError, match="threshold is"):
        Refinement(threshold=threshold)


def test_a_seed_with_its_own_background_takes_no_other_threshold():
    decoder = SeedItem([0, 2], np.full((2, 3, 3), 0.5, np.float16))
    refine_item(image(), decoder, Refinement(FAST))
    with pytest.raises(UserError, match="background of its own"):
        refine_item(image(), decoder, Refinement(FAST, threshold=0.4))


def test_decoder_sets_are_refused_before_any_work(tmp_path):
    seeds, data = make_sets(tmp_path, count=2)
    manifest = read_manifest(seeds)
    write_manifest(seeds, "seeds", manifest.class_names, manifest.shards, {"map": "decoder"})
    with pytest.raises(UserError, match="decoder seeds"):
        run(seeds, data, tmp_path / "masks", Refinement(FAST, threshold=0.4))
    assert not list((tmp_path).glob("masks/*.h5"))


def test_pixels_whose_label_the_crf_changed_become_255_and_keep_their_confidence():
    plain, sure = refine_item(image(), item(), Refinement(FAST, threshold=0.4))
    marked, same = refine_item(image(), item(),
                               Refinement(FAST, threshold=0.4, ignore_disagreement=True))
    before = seed_probabilities(item(), (50, 62), 0.4)[1].argmax(0)
    assert np.array_equal(marked == 255, plain != before)
    assert np.array_equal(marked[marked != 255], plain[marked != 255])
    assert np.array_equal(sure, same)
    assert 0 < (marked == 255).mean() < 0.5


def test_both_reasons_to_leave_a_pixel_out_add_up():
    parts = [refine_item(image(), item(), Refinement(FAST, ignore_below=below,
                                                     ignore_disagreement=differ))[0] == 255
             for below, differ in ((0.8, False), (None, True), (0.8, True))]
    assert np.array_equal(parts[0] | parts[1], parts[2]) and (parts[0] ^ parts[1]).any()


def test_an_image_without_classes_stays_background():
    empty = SeedItem(np.zeros(0), np.zeros((0, 4, 4)))
    label, confidence = refine_item(image(), empty, Refinement(FAST, threshold=0.2,
                                                               ignore_disagreement=True))
    assert not label.any() and (confidence == 255).all()


def test_the_record_names_both_and_another_value_is_refused(tmp_path):
    seeds, data = make_sets(tmp_path, count=3)
    how = Refinement(FAST, threshold=0.4, ignore_disagreement=True)
    run(seeds, data, tmp_path / "masks", how)
    provenance = json.loads((tmp_path / "masks/manifest.json").read_text())["provenance"]
    assert provenance["threshold"] == 0.4 and provenance["ignore_disagreement"] is True
    sentence = describe_route(provenance)
    assert "threshold 0.4, dense CRF, labels changed by the CRF unlabelled" in sentence
    for other in (Refinement(FAST, ignore_disagreement=True), Refinement(FAST, threshold=0.4)):
        with pytest.raises(UserError, match="other parameters"):
            run(seeds, data, tmp_path / "masks", other)
    plain = {**provenance, **Refinement(FAST).record()}
    assert "threshold" not in describe_route(plain) and "unlabelled" not in describe_route(plain)


def run(seeds: Path, data: Path, out: Path, how: Refinement):
    return refine_set(seeds, data, out, how, workers=1, progress=False,
                      make_executor=partial(ThreadPoolExecutor, 1))
