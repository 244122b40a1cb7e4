"""Labels do not depend on how their computation is divided."""

import pytest
import torch

from more.method import labels
from more.method.cam import resize, take_classes
from more.method.labels import cam_to_label, refined_label
from more.method.par import PixelAdaptiveRefinement


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_gain_is_what_ones_become():
    one = PixelAdaptiveRefinement((1, 2), 4)
    ones = one(drawn(1, 3, 6, 6).double(), torch.ones(1, 1, 6, 6).double())
    torch.testing.assert_close(ones, torch.full_like(ones, one.gain))


@pytest.mark.parametrize("pixels", [1, 2 * 100, 10**6])
def test_refined_labels_do_not_depend_on_the_images_at_a_time(pixels, monkeypatch):
    tags = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1.0]])
    images = drawn(5, 3, 20, 20)
    cams = resize(drawn(5, 4, 4, 4, seed=1), (20, 20)) * 1.3
    one = PixelAdaptiveRefinement((1, 2), 3)
    whole = refined_label(images, cams, tags, 0.75, 0.35, one)
    monkeypatch.setitem(labels.PIXELS, "cpu", pixels)
    assert torch.equal(refined_label(images, cams, tags, 0.75, 0.35, one), whole)
    assert len(whole.unique()) == 6


@pytest.mark.parametrize(("high", "low"), [(0.5, 0.25), (0.4, 0.0), (0.4, -0.2)])
def test_label_maps_of_present_classes_alone_are_the_same(high, low, monkeypatch):
    cams = (drawn(4, 6, 8, 8) * 20).round() / 20 - 0.3  # ties, thresholds, values below 0
    tags = torch.tensor([[1, 0, 1, 0, 0, 1], [0] * 6, [0, 0, 0, 0, 0, 1], [1] * 6]).float()
    small = cam_to_label(cams, tags, high, low)
    plain = cam_to_label(cams, tags, background=low, ignore_middle=False)
    monkeypatch.setattr(labels, "SMALL", 0)
    assert torch.equal(cam_to_label(cams, tags, high, low), small)
    assert torch.equal(cam_to_label(cams, tags, background=low, ignore_middle=False), plain)
    assert len(small.unique()) > 3


def test_classes_are_taken_from_any_layout():
    maps = drawn(2, 5, 3, 4)
    classes = torch.tensor([[4, 0], [2, 2]])
    expected = torch.stack([maps[0, [4, 0]], maps[1, [2, 2]]])
    for layout in (torch.contiguous_format, torch.channels_last):
        taken = take_classes(maps.contiguous(memory_format=layout), classes)
        assert torch.equal(taken, expected)
