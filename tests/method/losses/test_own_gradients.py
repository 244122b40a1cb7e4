"""Terms that make their gradient themselves: finite differences, division of work, checkpoints."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from more.method.losses import contrast
from more.method.losses.contrast import confident_region_loss, patch_contrast_loss
from more.method.losses.ure import uncertain_region_loss
from tests.oracles import step
from tests.oracles.losses import confident, uncertain

B, C, D, H, W = 3, 4, 5, 4, 3


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(B, C, D, generator=generator, dtype=dtype).requires_grad_()
    patches = torch.randn(B, D, H, W, generator=generator, dtype=dtype).requires_grad_()
    mask = torch.randint(0, 3, (B, H, W), generator=generator)
    mask[torch.rand(B, H, W, generator=generator) < 0.25] = 255
    tags = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0.0]], dtype=dtype)
    return tokens, patches, mask, tags


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("few", [0, 10**6])
def test_contrast_by_finite_differences(few, monkeypatch):
    _, patches, mask, _ = case()
    monkeypatch.setitem(contrast.FEW, "cpu", few)
    assert torch.autograd.gradcheck(lambda p: patch_contrast_loss(p, mask), patches)


@pytest.mark.parametrize("few", [0, 10**6])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_contrast_does_not_depend_on_the_chunk(chunk, few, monkeypatch):
    _, patches, mask, _ = case()
    monkeypatch.setitem(contrast.CHUNK, "cpu", chunk)
    monkeypatch.setitem(contrast.FEW, "cpu", few)
    loss, expected = patch_contrast_loss(patches, mask), step.contrast(patches, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, patches), gradient(expected, patches))
    with torch.no_grad():
        torch.testing.assert_close(patch_contrast_loss(patches, mask), expected)


def test_contrast_of_a_patch_without_length_is_finite():
    _, patches, mask, _ = case(torch.float32)
    patches = patches.detach().clone()
    patches[0, :, 0, 0], mask[0, 0, 0] = 0, 1
    patches.requires_grad_()
    loss = patch_contrast_loss(patches, mask)
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, patches)).all()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("reduction", ["released", "pairs"])
def test_confident_by_finite_differences(reduction, similarity):
    tokens, patches, mask, tags = case()
    assert torch.autograd.gradcheck(
        lambda t: confident_region_loss(t, patches, mask, tags, 0.5, similarity, reduction), tokens)


def test_confident_gives_16_bit_tokens_a_gradient_of_their_kind():
    tokens, patches, mask, tags = case(torch.float32)
    low = tokens.detach().bfloat16().requires_grad_()
    found = gradient(confident_region_loss(low, patches, mask, tags, 0.5), low)
    same = low.detach().float().requires_grad_()
    expected = gradient(confident_region_loss(same, patches, mask, tags, 0.5), same)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)


def test_confident_token_without_length_gets_the_gradient_of_normalize():
    tokens, patches, mask, tags = case()
    tokens = tokens.detach().clone()
    tokens[0, 0] *= 1e-10
    tokens.requires_grad_()
    found = gradient(confident_region_loss(tokens, patches, mask, tags, 0.5), tokens)
    expected = gradient(confident(tokens, patches, mask, tags, 0.5), tokens)
    torch.testing.assert_close(found, expected)
    assert found[0, 0].abs().max() > 1e5


PLACES = torch.tensor([[[0, 0], [0, 1], [3, 2]], [[1, 1], [1, 1], [2, 2]], [[3, 0], [-1, -1],
                                                                           [-1, -1]]])


@pytest.mark.parametrize("form", ["released", "paper"])
def test_uncertain_by_finite_differences(form):
    """One patch is named twice, one image has one patch, another no class."""
    tokens, patches, _, tags = case()
    tags[1] = 0
    assert torch.autograd.gradcheck(
        lambda p: uncertain_region_loss(tokens, p, tags, PLACES, PLACES[..., 0] >= 0, form=form),
        patches)


def test_uncertain_patch_without_length_gets_the_gradient_of_normalize():
    tokens, patches, _, tags = case()
    patches = patches.detach().clone()
    patches[0, :, 0, 1] = 1e-11
    patches[1, :, 1, 1] = 0
    patches.requires_grad_()
    valid = PLACES[..., 0] >= 0
    loss = uncertain_region_loss(tokens, patches, tags, PLACES, valid)
    places = [[tuple(p) for p in i[v].tolist()] for i, v in zip(PLACES, valid, strict=True)]
    expected = uncertain(tokens.detach(), patches, tags, places)
    torch.testing.assert_close(loss, expected)
    found, wanted = gradient(loss, patches), gradient(expected, patches)
    torch.testing.assert_close(found, wanted)
    assert found[0, :, 0, 1].abs().max() > 1e5 and torch.isfinite(found).all()


def test_uncertain_gives_16_bit_patches_a_gradient_of_their_kind():
    tokens, patches, _, tags = case(torch.float32)
    low = patches.detach().bfloat16().requires_grad_()
    valid = PLACES[..., 0] >= 0
    found = gradient(uncertain_region_loss(tokens, low, tags, PLACES, valid), low)
    same = low.detach().float().requires_grad_()
    expected = gradient(uncertain_region_loss(tokens, same, tags, PLACES, valid), same)
    assert found.dtype == torch.bfloat16 and expected.any()
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-6)


def test_a_loss_scale_saves_small_gradients_in_fp16():
    """They are made in the forward pass, where the scale of the loss is not known yet."""
    tokens, patches, mask, tags = case(torch.float32)
    valid = PLACES[..., 0] >= 0

    def both(long):  # gradients of long vectors are short
        return (confident_region_loss(long[0], patches.detach() / 256, mask, tags, 0.5)
                + uncertain_region_loss(tokens, long[1], tags, PLACES, valid))

    low = [(x.detach() * 2**13).half().requires_grad_() for x in (tokens, patches)]
    full = [x.detach().float().requires_grad_() for x in low]
    found = torch.autograd.grad(2**16 * both(low), low)
    expected = torch.autograd.grad(both(full), full)
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < theirs.abs().max() < 2e-5
        torch.testing.assert_close(ours.float() / 2**16, theirs, rtol=2e-3, atol=1e-9)


def test_confident_gives_classes_out_of_the_tags_nothing():
    tokens, patches, mask, tags = case()
    mask[1, 0, 0] = 3  # a class that image 1 does not have
    loss = confident_region_loss(tokens, patches, mask, tags, 0.5)
    expected = confident(tokens, patches, mask, tags, 0.5)
    found = gradient(loss, tokens)
    torch.testing.assert_close(found, gradient(expected, tokens))
    assert not found[tags == 0].any() and found[1, 1].any()


def test_both_inside_a_checkpoint_and_scaled():
    tokens, patches, mask, tags = case()

    def both(t, p):
        return (3 * confident_region_loss(t, p, mask, tags, 0.5)
                + 5 * patch_contrast_loss(p, mask))

    whole = torch.autograd.grad(both(tokens, patches), [tokens, patches])
    again = torch.autograd.grad(checkpoint(both, tokens, patches, use_reentrant=False),
                                [tokens, patches])
    alone = gradient(patch_contrast_loss(patches, mask), patches)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    torch.testing.assert_close(whole[1], 5 * alone)


def test_confident_where_all_exponentials_vanish_has_no_gradient():
    """Also where the patches do not lie along the token."""
    _, _, mask, _ = case()
    tokens = torch.ones(B, C, D, dtype=torch.float64, requires_grad=True)
    patches = torch.linspace(-1000, -3000, D, dtype=torch.float64)[:, None, None].expand(B, D, H, W)
    tags = torch.tensor([[1.0, 0, 0, 0]] * B)
    loss = confident_region_loss(tokens, patches, torch.ones_like(mask), tags, 0.5)
    assert loss > 0 and not gradient(loss, tokens).any()
