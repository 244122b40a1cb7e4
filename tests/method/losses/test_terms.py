"""The single terms: against plain loops, in their empty cases, and over split batches."""

import math

import pytest
import torch

from more.method.losses.classification import (
    balanced_cross_entropy,
    multilabel_soft_margin,
)
from more.method.losses.contrast import (
    class_token_decorrelation,
    confident_region_loss,
    mixed_class_token_loss,
    patch_contrast_loss,
)
from tests.oracles import losses as oracle

B, C, D, H, W = 4, 5, 8, 9, 8


def case(seed=0, dtype=torch.float64):
    """Tokens, patches, a region mask and tags; the last image has no tag."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, C, D, generator=generator, dtype=dtype)
    patches = torch.randn(B, D, H, W, generator=generator, dtype=dtype)
    tags = (torch.rand(B, C, generator=generator) > 0.5).to(dtype)
    tags[0, 0], tags[-1] = 1, 0
    mask = torch.randint(0, C + 1, (B, H, W), generator=generator)
    allowed = torch.cat([torch.ones(B, 1), tags], dim=1).gather(1, mask.flatten(1)).view_as(mask)
    return tokens, patches, torch.where(allowed > 0, mask, 255), tags


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


def test_decorrelation_of_equal_tokens_is_log_classes_without_gradient():
    tokens = torch.ones(2, C, D, dtype=torch.float64, requires_grad=True)
    loss = class_token_decorrelation(tokens)
    assert loss.item() == pytest.approx(math.log(C))
    assert gradient(loss, tokens).abs().max() < 1e-12
    tokens = torch.zeros(1, C, D, requires_grad=True)
    loss = class_token_decorrelation(tokens)
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, tokens)).all()


def test_decorrelation_and_classification_do_not_depend_on_the_order_of_classes():
    tokens, _, _, tags = case()
    order = torch.randperm(C)
    for loss in (lambda o: class_token_decorrelation(tokens[:, o]),
                 lambda o: mixed_class_token_loss(tokens[:, o], tags[:, o])):
        torch.testing.assert_close(loss(order), loss(torch.arange(C)))


def test_classification_follows_its_formula():
    logits, tags = torch.randn(B, C, dtype=torch.float64) * 5, case()[3]
    sigma = torch.sigmoid(logits)
    expected = -(tags * sigma.log() + (1 - tags) * (1 - sigma).log()).mean()
    torch.testing.assert_close(multilabel_soft_margin(logits, tags), expected)
    assert torch.isfinite(multilabel_soft_margin(logits * 1e4, tags))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_confident_equals_the_loop_value_and_gradient(temperature):
    tokens, patches, mask, tags = case()
    tokens.requires_grad_()
    loss = confident_region_loss(tokens, patches, mask, tags, temperature)
    expected = oracle.confident(tokens, patches, mask, tags, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, tokens), gradient(expected, tokens))


def test_confident_batch_is_the_mean_of_single_images():
    tokens, patches, mask, tags = case()
    single = [confident_region_loss(tokens[i : i + 1], patches[i : i + 1], mask[i : i + 1],
                                    tags[i : i + 1], 0.5) for i in range(B)]
    whole = confident_region_loss(tokens, patches, mask, tags, 0.5)
    torch.testing.assert_close(whole, torch.stack(single).mean())
    assert single[-1] == 0


@pytest.mark.parametrize("reduction", ["released", "pairs"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_confident_permutes_and_survives_huge_features(similarity, reduction):
    tokens, patches, mask, tags = case(dtype=torch.float32)
    order = torch.randperm(C)
    numbers = torch.arange(256)
    numbers[order + 1] = torch.arange(1, C + 1)

    def loss(o, m, factor=1.0):
        return confident_region_loss(tokens[:, o], patches * factor, m, tags[:, o], 0.1,
                                     similarity, reduction)

    torch.testing.assert_close(loss(order, numbers[mask]), loss(torch.arange(C), mask))
    tokens.requires_grad_()
    huge = loss(torch.arange(C), mask, 1e4)
    assert torch.isfinite(huge) and torch.isfinite(gradient(huge, tokens)).all()


def test_confident_where_everything_underflows():
    tokens = torch.ones(1, 1, D, requires_grad=True)
    patches, mask = torch.full((1, D, 2, 2), -100.0), torch.ones(1, 2, 2)
    loss = confident_region_loss(tokens, patches, mask, torch.ones(1, 1), 0.5)
    assert loss.item() == pytest.approx(math.log1p(1e-4) * 4 / (4 + 1e-4), rel=1e-3)
    assert not gradient(loss, tokens).any()


def test_confident_cosine_ignores_the_length_of_features():
    tokens, patches, mask, tags = case()
    a, b = (confident_region_loss(tokens, p, mask, tags, 0.5, "cosine", "pairs")
            for p in (patches, patches * 7))
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="similarity"):
        confident_region_loss(tokens, patches, mask, tags, 0.5, "euclid")
    with pytest.raises(ValueError, match="reduction"):
        confident_region_loss(tokens, patches, mask, tags, 0.5, reduction="sum")


def test_confident_without_anything_confident_is_zero_with_zero_gradient():
    tokens, patches, mask, tags = case()
    tokens.requires_grad_()
    for reduction in ("released", "pairs"):
        for m, t in ((torch.full_like(mask, 255), tags), (mask, torch.zeros_like(tags))):
            loss = confident_region_loss(tokens, patches, m, t, 0.5, reduction=reduction)
            assert loss == 0 and not gradient(loss, tokens).any()


def test_contrast_equals_the_loop_value_and_gradient():
    _, patches, mask, _ = case()
    patches, mask = patches[:2, :, :5, :4].clone().requires_grad_(), mask[:2, :5, :4]
    loss, expected = patch_contrast_loss(patches, mask), oracle.contrast(patches, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, patches), gradient(expected, patches))


def test_contrast_with_nothing_known_or_one_region():
    _, patches, mask, _ = case()
    patches.requires_grad_()
    unknown = patch_contrast_loss(patches, torch.full_like(mask, 255))
    assert unknown == 0.5 and not gradient(unknown, patches).any()
    one = patch_contrast_loss(patches, torch.zeros_like(mask))
    assert 0 <= one < 0.5 and gradient(one, patches).any()


def test_segmentation_equals_the_loop_value_and_gradient():
    logits = torch.randn(B, C + 1, H, W, dtype=torch.float64, requires_grad=True)
    mask = case()[2]
    loss, expected = balanced_cross_entropy(logits, mask), oracle.segmentation(logits, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("value", [0, 2, 255])
def test_segmentation_of_one_value_is_finite(value):
    logits = torch.randn(2, C + 1, H, W, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.full((2, H, W), float(value)))
    assert torch.isfinite(loss) and (loss == 0) == (value == 255)
    assert torch.isfinite(gradient(loss, logits)).all()


def ranks(term, *tensors, ranks=2, **options):
    """Mean over emulated ranks of a term, each with its part and the mean of all counts."""
    seen, parts = [], list(zip(*(t.chunk(ranks) for t in tensors), strict=True))
    for part in parts:  # first pass: what each rank counts
        term(*part, reduce=lambda n: seen.append(n) or n, **options)
    mean = torch.stack(seen).mean(dim=0)
    share = {} if options.pop("plain", False) else {"share": 1 / ranks}
    values = [term(*part, reduce=lambda n: mean, **share, **options) for part in parts]
    return torch.stack(values).mean()


def test_split_batches_give_the_loss_of_the_global_batch():
    tokens, patches, mask, tags = case()
    mask[:2].masked_fill_(mask[:2] == 0, 255)  # the halves count differently
    logits = torch.randn(B, C + 1, H, W, dtype=torch.float64)
    torch.testing.assert_close(ranks(patch_contrast_loss, patches, mask),
                               patch_contrast_loss(patches, mask), rtol=1e-12, atol=0)
    torch.testing.assert_close(ranks(balanced_cross_entropy, logits, mask),
                               balanced_cross_entropy(logits, mask), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ranks(confident_region_loss, tokens, patches, mask, tags,
              temperature=0.5, reduction="pairs"),
        confident_region_loss(tokens, patches, mask, tags, 0.5, reduction="pairs"),
        rtol=1e-12, atol=0)


def test_sixteen_bit_inputs_are_summed_in_float32():
    tokens, patches, mask, tags = case(dtype=torch.bfloat16)
    tags = tags.float()
    values = [class_token_decorrelation(tokens), patch_contrast_loss(patches, mask),
              confident_region_loss(tokens, patches, mask, tags, 0.5)]
    wide = [class_token_decorrelation(tokens.float()), patch_contrast_loss(patches.float(), mask),
            confident_region_loss(tokens.float(), patches.float(), mask, tags, 0.5)]
    assert all(v.dtype == torch.float32 and v == w for v, w in zip(values, wide, strict=True))
