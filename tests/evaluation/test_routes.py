"""The sentence about how a number was made."""

import pytest

from more.evaluation.routes import UNKNOWN, describe_route

SCALES = [1.0, 0.5, 0.75, 1.25]


def seeds(kind, **changes):
    return {"stage": "localize", "map": kind, "tags": "true", "scales": SCALES, "flip": True,
            **changes}


def refined(kind, engine="pydensecrf", **changes):
    return {"stage": "refine", "crf": {}, "engine": engine, "seeds": seeds(kind, **changes)}


@pytest.mark.parametrize("provenance, threshold, sentence", [
    (seeds("lam"), 0.5, "LAM seeds, true image tags, 4 scales + flip, threshold 0.50 "
                        "(pseudo-labels of a training set: route b)"),
    (seeds("cam", scales=[1.0], flip=False), 0.45,
     "CAM seeds, true image tags, 1 scale, threshold 0.45 "
     "(pseudo-labels of a training set: route b)"),
    (refined("fused"), None, "fused CAM and LAM masks, true image tags, 4 scales + flip, "
                             "dense CRF (pseudo-labels of a training set: route b)"),
    (refined("lam", tags="predicted"), None,
     "LAM masks, predicted image tags, 4 scales + flip, dense CRF (route c)"),
    (seeds("lam", tags="predicted"), 0.5, "LAM seeds, predicted image tags, 4 scales + flip, "
                                          "threshold 0.50 (route c without CRF)"),
    (refined("decoder", engine="lattice", tags="none"), None,
     "decoder, 4 scales + flip, dense CRF (lattice engine) (route a)"),
    (seeds("decoder", tags="none", scales=[1.0], flip=False), None,
     "decoder, 1 scale (route a without multi-scale, flip, CRF)"),
    (refined("decoder"), None, "decoder, restricted to the true image tags, 4 scales + flip, "
                               "dense CRF (route a, but given the true tags)"),
    ({**refined("lam"), "ignore_below": 0.9}, None,
     "LAM masks, true image tags, 4 scales + flip, dense CRF, confidence below 0.9 unlabelled "
     "(pseudo-labels of a training set: route b)"),
    ({**refined("lam"), "threshold": 0.37, "threshold_chosen": "otsu"}, None,
     "LAM masks, true image tags, 4 scales + flip, threshold 0.37 chosen by the seeds' values, "
     "dense CRF (pseudo-labels of a training set: route b)"),
    ({}, None, UNKNOWN),
    (None, 0.5, UNKNOWN),
])
def test_sentences(provenance, threshold, sentence):
    assert describe_route(provenance, threshold) == sentence


def test_parameters_below_the_top_level_are_found():
    nested = {"tool": "more refine", "parameters": {
        "stage": "refine", "crf": {}, "seeds": {"tool": "x", "parameters": seeds("lam")}}}
    assert describe_route(nested) == describe_route(refined("lam"))


def test_routes_never_share_a_sentence():
    made = [describe_route(build(kind, tags=tags), None) for build in (seeds, refined)
            for kind in ("cam", "lam", "decoder") for tags in ("true", "predicted")]
    assert len(set(made)) == len(made)
