"""The terms of training on masks: against plain loops, in their limits, over split batches."""

import pytest
import torch
import torch.nn.functional as F

from more.method import gradients
from more.method.heads import shown_probabilities
from more.method.losses.classification import (
    balanced_cross_entropy,
    image_tags_loss,
    mask_loss,
    multilabel_soft_margin,
)
from tests.method.losses.test_terms import ranks

B, C, GRID, SIZE = 4, 5, (6, 5), (24, 20)


def case(seed=0, size=SIZE, dtype=torch.float64):
    """Logits of patches, labels at full size (a sixth unknown, one image all background)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C + 1, *GRID, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, C + 1, (B, *size), generator=generator)
    labels = labels.masked_fill(torch.rand(B, *size, generator=generator) < 1 / 6, 255)
    labels[1] = 0
    weights = torch.rand(B, *size, generator=generator, dtype=dtype)
    return logits, labels.to(torch.uint8), weights


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def assert_same(first, second, logits, **tolerance):
    """Value and gradient."""
    torch.testing.assert_close(first, second, **tolerance)
    torch.testing.assert_close(gradient(first, logits), gradient(second, logits), **tolerance)


@pytest.mark.parametrize("size", [SIZE, GRID, (7, 31)])
def test_without_weights_it_is_the_released_cross_entropy(size):
    logits, labels, _ = case(size=size)
    assert_same(mask_loss(logits, labels), balanced_cross_entropy(logits, labels), logits)


def by_hand(logits, labels, weights, balanced):
    """Pixel by pixel at full size."""
    large = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    rows = large.log_softmax(1).permute(0, 2, 3, 1).flatten(0, 2).unbind(0)
    sums, numbers = [0.0, 0.0], [1e-6, 1e-6]
    for row, label, weight in zip(rows, labels.flatten().tolist(), weights.flatten().tolist(),
                                  strict=True):
        if label != 255:
            kind = int(label > 0) if balanced else 0
            sums[kind] = sums[kind] - weight * row[label]
            numbers[kind] += weight
    if balanced:
        return (sums[0] / numbers[0] + sums[1] / numbers[1]) / 2
    return sums[0] / numbers[0]


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("size", [GRID, (12, 9)])
def test_it_equals_the_loop_value_and_gradient(size, balanced):
    logits, labels, weights = case(size=size)
    assert_same(mask_loss(logits, labels, weights, balanced),
                by_hand(logits, labels, weights, balanced), logits)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1.0, 0.01])
def test_equal_weights_are_no_weights(factor, balanced):
    """Numbers are sums of weights: what counts is how they compare."""
    logits, labels, weights = case()
    same = torch.full_like(weights, factor)
    assert_same(mask_loss(logits, labels, same, balanced),
                mask_loss(logits, labels, None, balanced), logits, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_pixel_of_weight_zero_is_one_without_label(balanced):
    logits, labels, weights = case()
    out = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    one = mask_loss(logits, labels, weights.masked_fill(out, 0), balanced)
    assert_same(one, mask_loss(logits, labels.masked_fill(out, 255), weights, balanced), logits)
    assert one != mask_loss(logits, labels, weights, balanced)


def test_plain_is_the_mean_over_labelled_pixels():
    logits, labels, _ = case()
    large = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large, labels.long(), ignore_index=255)
    assert_same(mask_loss(logits, labels, balanced=False), expected, logits, rtol=1e-6, atol=1e-9)
    assert not torch.isclose(expected, mask_loss(logits, labels))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("value", [0, 3, 255])
def test_labels_of_one_value_are_finite(value, weighted, balanced):
    logits, labels, weights = case(dtype=torch.float32)
    weights = weights if weighted else None
    loss = mask_loss(logits, torch.full_like(labels, value), weights, balanced)
    slope = gradient(loss, logits)
    assert torch.isfinite(loss) and torch.isfinite(slope).all()
    assert (loss == 0) == (value == 255) and slope.any() == (value != 255)


def test_nothing_that_counts_is_zero_with_zero_gradient():
    logits, labels, weights = case(dtype=torch.float32)
    loss = mask_loss(logits, labels, torch.zeros_like(weights))
    assert loss == 0 and not gradient(loss, logits).any()


@pytest.mark.parametrize("weighted", [True, False])
def test_some_images_at_a_time_give_the_loss_of_all(monkeypatch, weighted):
    logits, labels, weights = case()
    weights = weights if weighted else None
    whole = mask_loss(logits, labels, weights)
    monkeypatch.setitem(gradients.BYTES, "cpu", 1)
    assert gradients.images_at_a_time(logits, SIZE) == 1
    assert_same(mask_loss(logits, labels, weights), whole, logits)


@pytest.mark.parametrize("balanced", [True, False])
def test_split_batches_give_the_loss_of_the_global_batch(balanced):
    logits, labels, weights = case()
    whole = mask_loss(logits, labels, weights, balanced)
    parts = ranks(mask_loss, logits, labels, weights, balanced=balanced)
    assert_same(parts, whole, logits, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weighted", [True, False])
def test_sixteen_bit_logits_are_summed_in_float32(weighted):
    logits, labels, weights = case(dtype=torch.float32)
    half, weights = logits.detach().bfloat16(), weights if weighted else None
    value = mask_loss(half, labels, weights)
    assert value.dtype == torch.float32 and value == mask_loss(half.float(), labels, weights)


@pytest.mark.parametrize(("grid", "number"), [((6, 5), 1), ((7, 7), 2), ((4, 4), 1), ((16, 8), 4)])
def test_a_class_is_shown_by_the_likeliest_of_32_patches(grid, number):
    logits = torch.randn(3, C + 1, *grid, generator=torch.Generator().manual_seed(2),
                         dtype=torch.float64)
    found = shown_probabilities(logits)
    assert found.shape == (3, C)
    for image in range(3):
        for k in range(C):
            values = [torch.softmax(logits[image, :, y, x], 0)[k + 1].item()
                      for y in range(grid[0]) for x in range(grid[1])]
            best = sorted(values)[-number:]
            assert found[image, k].item() == pytest.approx(sum(best) / number)


def test_the_tags_term_equals_the_loop_value_and_gradient():
    logits = torch.randn(B, C + 1, 7, 7, generator=torch.Generator().manual_seed(3),
                         dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1.0]])
    expected = 0.0
    for image in range(B):
        for k in range(C):
            values = logits[image].softmax(0)[k + 1].flatten()
            shown = values[values.argsort()[-2:]].mean()
            expected = expected - (shown if tags[image, k] else 1 - shown).log() / (B * C)
    assert_same(image_tags_loss(logits, tags), expected, logits)


def test_the_tags_term_falls_when_the_image_shows_its_classes():
    tags = torch.tensor([[1.0, 0, 1, 0, 0]])
    logits = torch.full((1, C + 1, 8, 8), -30.0)
    logits[:, 0] = 0
    missing = image_tags_loss(logits, tags)
    logits[0, 1, 0, :2] = logits[0, 3, 4, 4:6] = 40.0
    right = image_tags_loss(logits, tags)
    logits[0, 5, 6, 6:] = 60.0
    wrong = image_tags_loss(logits, tags)
    assert right < 1e-4 < wrong < missing
    logits.requires_grad_()
    for value in (1e4, -1e4):  # certain to the last bit: the logarithm stays finite
        loss = image_tags_loss(logits * value, tags)
        assert torch.isfinite(loss) and torch.isfinite(gradient(loss, logits)).all()


def test_a_probability_of_log_odds_is_the_soft_margin():
    """With one patch a class and the background alone, it is plain classification of patches."""
    logits = torch.randn(B, 2, 1, 1, generator=torch.Generator().manual_seed(4),
                         dtype=torch.float64)
    tags = torch.tensor([[1.0], [0], [1], [0]])
    torch.testing.assert_close(image_tags_loss(logits, tags), multilabel_soft_margin(
        (logits[:, 1] - logits[:, 0]).flatten(1), tags))
