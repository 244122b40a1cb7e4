"""Competitive pooling: patches choose, the background may win, a class needs a few patches."""

from __future__ import annotations

import pytest
import torch

from more.method.heads import CompetitiveHead
from tests.method.micro import images, micro_network


def test_probabilities_leave_a_share_to_the_background():
    head = CompetitiveHead(6, 3, normalise=False)
    scores = torch.randn(2, 3, 4, 5)
    probabilities = head.probabilities(scores)
    shares = torch.stack([torch.exp(scores[0, c, 1, 2] + head.bias[c]) for c in range(3)])
    expected = shares / (shares.sum() + torch.exp(torch.tensor(2.0)))
    torch.testing.assert_close(probabilities[0, :, 1, 2], expected)
    assert (probabilities.sum(1) < 1).all() and (probabilities > 0).all()


def test_a_class_that_wins_a_few_patches_is_present():
    head = CompetitiveHead(6, 2, normalise=False)
    scores = torch.full((1, 2, 8, 8), -9.0)
    scores[0, 0, 3, 3:5] = 20.0  # 2 of 64 patches: the share that is looked at
    logits = head.logits(head.probabilities(scores))
    assert logits[0, 0] > 5 > -5 > logits[0, 1]
    assert torch.isfinite(head.logits(head.probabilities(scores * 1e4))).all()


def test_what_all_patches_share_is_removed():
    head = CompetitiveHead(6, 2, normalise=False)
    features = torch.randn(4, 6, 3, 3) + torch.arange(6.0)[:, None, None]
    head.set_centre(features)
    torch.testing.assert_close(head.prepare(features).mean((0, 2, 3)), torch.zeros(6))


def test_auxiliary_features_are_brought_to_one_scale():
    head = CompetitiveHead(6, 2, normalise=True)
    features = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(head.prepare(features), head.prepare(7 * features + 3),
                               atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_maps_and_logits_of_the_network_agree():
    network = micro_network(pooling="competitive")
    out = network(images())
    assert (out.cam > 0).all() and (out.cam.sum(1) < 1).all()
    torch.testing.assert_close(out.logits, network.contest.logits(out.cam))
    torch.testing.assert_close(out.aux_logits, network.aux_contest.logits(out.aux_cam))


def test_other_poolings_have_no_such_parameters():
    names = [name for name, _ in micro_network().named_parameters()]
    assert not any("contest" in name for name in names)
    with pytest.raises(AttributeError):
        micro_network().contest  # noqa: B018
