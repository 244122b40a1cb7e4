"""Regions, boxes, PAR and refined labels against the loops of tests/oracles."""

import pytest
import torch

from more.method.cam import resize
from more.method.labels import (
    cam_to_label,
    denormalise,
    refined_label,
    scale_box,
    undo_normalisation,
)
from more.method.par import PixelAdaptiveRefinement
from more.tensors import box_mask
from tests.oracles import labels as oracle


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_cam_to_label_equals_the_loop_also_on_thresholds():
    cams = (drawn(3, 4, 6, 5) * 20).round() / 20  # many values exactly on 0.25, 0.7 and ties
    tags = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0.0]])
    label = cam_to_label(cams, tags, 0.7, 0.25)
    assert torch.equal(label, oracle.cam_to_label(cams, tags, 0.7, 0.25))
    assert not label[1].any()
    assert set(label.unique().tolist()) == {0, 1, 2, 3, 4, 255}


def test_cam_to_label_permutes_with_the_classes():
    cams, tags = drawn(2, 5, 8, 8, seed=1), (drawn(2, 5, seed=2) > 0.4).float()
    order = torch.tensor([3, 0, 4, 1, 2])
    label = cam_to_label(cams, tags, 0.8, 0.3)
    moved = cam_to_label(cams[:, order], tags[:, order], 0.8, 0.3)
    numbers = torch.arange(256)
    numbers[1:6] = order + 1
    assert torch.equal(numbers[moved], label)


def test_cam_to_label_asks_for_the_thresholds_of_its_mode():
    with pytest.raises(ValueError, match="high and low"):
        cam_to_label(drawn(1, 2, 3, 3), torch.ones(1, 2), background=0.5)
    with pytest.raises(ValueError, match="background"):
        cam_to_label(drawn(1, 2, 3, 3), torch.ones(1, 2), 0.7, 0.2, ignore_middle=False)


def test_boxes():
    box = torch.tensor([[1, 3, 0, 4], [0, 0, 0, 0]])
    inside = box_mask(box, (4, 5))
    assert inside[0].sum() == 8 and inside[0, 1:3, :4].all() and not inside[1].any()
    small = scale_box(torch.tensor([[0, 32, 5, 32], [8, 31, 16, 24]]), (32, 32), (4, 4))
    assert small.tolist() == [[0, 4, 1, 4], [1, 3, 2, 3]]


def test_boxes_of_every_place_equal_whole_number_arithmetic():
    ends = torch.arange(24)
    box = torch.stack([ends, ends.flip(0), ends.roll(3), ends.roll(7)], dim=1)
    sizes = ((23, 23), (4, 7)), ((24, 16), (3, 5)), ((9, 23), (9, 23)), ((5, 7), (8, 9))
    for size, grid in sizes:
        expected = [[-(-a * grid[0] // size[0]), b * grid[0] // size[0],
                     -(-c * grid[1] // size[1]), d * grid[1] // size[1]]
                    for a, b, c, d in box.tolist()]
        assert scale_box(box, size, grid).tolist() == expected
        inside = box_mask(box, size)
        assert inside.shape == (24, *size) and inside.tolist() == [
            [[a <= y < b and c <= x < d for x in range(size[1])] for y in range(size[0])]
            for a, b, c, d in box.tolist()]


def test_denormalise_truncates_and_stays_in_range():
    levels = torch.tensor([0.0, 17.5, 254.99, 255.4]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    mean, std = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
    normalised = (levels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(undo_normalisation(normalised, mean, std), levels)
    seen = denormalise(normalised, mean, std)[0, 0].flatten() * 255
    assert seen.round().tolist()[1:] == [17, 254, 255]


@pytest.mark.parametrize("size", [(9, 12), (5, 5)])
def test_par_equals_the_loop_one_image_at_a_time(size):
    images, masks = drawn(2, 3, *size, seed=3).double(), drawn(2, 4, *size, seed=4).double()
    refined = PixelAdaptiveRefinement((1, 2, 6), 3)(images, masks)
    for image, mask, result in zip(images, masks, refined, strict=True):
        torch.testing.assert_close(result, oracle.par(image, mask, (1, 2, 6), 3))


def test_par_weights_sum_to_one_and_a_hundredth():
    weights = PixelAdaptiveRefinement((1, 2)).weights(drawn(2, 3, 7, 6))
    assert weights.shape == (2, 16, 7, 6)
    torch.testing.assert_close(weights.sum(1), torch.full((2, 7, 6), 1.01))
    flat = PixelAdaptiveRefinement((1, 2)).weights(torch.full((1, 3, 7, 6), 0.4))
    assert torch.isfinite(flat).all()


def test_par_does_not_depend_on_the_other_masks_and_refuses_bad_dilations():
    images, masks = drawn(1, 3, 8, 8), drawn(1, 3, 4, 4, seed=1)
    par = PixelAdaptiveRefinement((1, 3), 2)
    torch.testing.assert_close(par(images, masks)[:, 1:2], par(images, masks[:, 1:2]))
    with pytest.raises(ValueError, match="dilations"):
        PixelAdaptiveRefinement((0, 1))


@pytest.mark.parametrize("size", [(20, 18), (17, 21)])
def test_refined_labels_equal_the_loop_over_images_and_present_classes(size):
    tags = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1.0]])
    images, cams = drawn(4, 3, *size, seed=5), resize(drawn(4, 5, 4, 4, seed=6), size) * 1.3
    cams = cams * tags[:, :, None, None]
    par = PixelAdaptiveRefinement((1, 2), 3)
    label = refined_label(images, cams, tags, 0.75, 0.35, par)
    for b in range(4):
        expected = oracle.refined_label(images[b], cams[b], tags[b], 0.75, 0.35, (1, 2), 3)
        assert torch.equal(label[b], expected)
    assert not label[1].any()
    assert set(label[2].unique().tolist()) == {0, 3, 255}
    for b in (0, 2, 3):  # never a class outside the tags
        found = [v - 1 for v in label[b].unique().tolist() if v not in (0, 255)]
        assert found and all(tags[b, k] > 0 for k in found)


def test_refined_labels_permute_with_the_classes():
    tags = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1.0]])
    images = drawn(2, 3, 16, 16, seed=7)
    cams = drawn(2, 4, 16, 16, seed=8) * tags[:, :, None, None]
    par, order = PixelAdaptiveRefinement((1, 2), 2), torch.tensor([2, 3, 1, 0])
    label = refined_label(images, cams, tags, 0.7, 0.25, par)
    moved = refined_label(images, cams[:, order], tags[:, order], 0.7, 0.25, par)
    numbers = torch.arange(256)
    numbers[1:5] = order + 1
    assert torch.equal(numbers[moved], label)


def test_refined_labels_without_any_tag_and_outside_a_box():
    images, cams = drawn(2, 3, 8, 8), drawn(2, 3, 8, 8, seed=1)
    box = torch.tensor([[0, 4, 0, 8], [2, 8, 0, 8]])
    label = refined_label(images, cams, torch.zeros(2, 3), 0.7, 0.25, PixelAdaptiveRefinement())
    assert not label.any()
    label = refined_label(images, cams, torch.zeros(2, 3), 0.7, 0.25,
                          PixelAdaptiveRefinement(), box)
    assert torch.equal(label == 255, ~box_mask(box, (8, 8)))
