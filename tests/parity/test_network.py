"""Heads, CAM, LAM and multi-scale maps against the release."""

import pytest
import torch

from more.method.cam import minmax, multi_scale, resize
from tests.parity.compare import close
from tests.parity.released import fixture_network, heads_of

TOL = 1e-4


@pytest.fixture(scope="module")
def network(parity):
    arrays = parity("network")
    return fixture_network(arrays, arrays["image"].shape[-1], heads_of(parity("encoder")))


@torch.no_grad()
def test_training_outputs(parity, network):
    arrays = parity("network")
    out = network(torch.from_numpy(arrays["image"]))
    for ours, theirs in {
            "logits": "cls_logits", "aux_logits": "aux_cls_logits", "seg_logits": "seg_logits",
            "patch_tokens": "feature_map", "class_tokens": "plain_tokens",
            "graph_tokens": "enhanced_tokens", "cam": "cam", "aux_cam": "cam_aux"}.items():
        close(getattr(out, ours), arrays[theirs], TOL, name=ours)


def test_single_modes(parity, network):
    arrays = parity("network")
    images = torch.from_numpy(arrays["image"])
    cam, aux_cam = network(images, mode="cam")
    close(cam, arrays["cam"], TOL)
    close(aux_cam, arrays["cam_aux"], TOL)
    lam = network(images, mode="lam")
    close(lam, arrays["lam"], TOL)
    close(minmax(lam), arrays["lam_normalised"], TOL)
    close(network(images, mode="segment"), arrays["seg_logits"], TOL)
    maps = network(images, mode="maps")
    for name, key in {"cam": "cam", "aux_cam": "cam_aux", "lam": "lam",
                      "logits": "cls_logits"}.items():
        close(maps[name], arrays[key], TOL, name=name)


@torch.no_grad()
def test_score_maps(parity, network):
    arrays = parity("network")
    images = torch.from_numpy(arrays["image"])
    scores = network(images, mode="attention")
    close(scores, arrays["score_maps"], TOL)
    expected = arrays["score_map_cam"]
    close(minmax(resize(scores[:len(expected)], expected.shape[-2:])), expected, TOL)


def test_multi_scale_maps(parity, network):
    arrays = parity("network")
    images = torch.from_numpy(arrays["image"])[:len(arrays["ms_cam"])]
    cam, aux_cam = multi_scale(lambda x: network(x, mode="cam"), images,
                               arrays["scales_cam"].tolist(), relu=(True, True))
    close(cam, arrays["ms_cam"], TOL)
    close(aux_cam, arrays["ms_cam_aux"], TOL)
    for scales, key in ([1.0], "ms_lam_1"), (arrays["scales_lam"].tolist(), "ms_lam_7"):
        lam, = multi_scale(lambda x: (network(x, mode="lam"),), images, scales, relu=(False,))
        close(lam, arrays[key], TOL, name=key)


def test_checkpoint_without_classifier_bias(parity, network):
    assert (network.classifier.bias is not None) == bool(parity("network")["classifier_has_bias"])
