"""URE: which patches may be chosen, how many, and what the loss does with them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more.method.losses.ure import (
    random_keys,
    select_uncertain,
    uncertain_candidates,
    uncertain_region_loss,
)
from tests.oracles import losses as oracle
from tests.oracles import step

GRID = (12, 14)


def masks(number=6, seed=0, uncertain=0.3):
    """Random regions, from mostly class to mostly background."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(number, *GRID, generator=generator)
    share = torch.linspace(0.9, 0.1, number)[:, None, None]
    mask = torch.where(torch.rand(number, *GRID, generator=generator) < share, 2, 0)
    return torch.where(value < uncertain, 255, mask)


def keys(number, seed=0):
    return random_keys(number, GRID, torch.Generator().manual_seed(seed))


def chosen(mask, **options):
    positions, valid = select_uncertain(mask, **options)
    return [[tuple(p) for p in image[keep].tolist()]
            for image, keep in zip(positions, valid, strict=True)]


def few(number):
    """A class everywhere but for `number` uncertain patches inside the cut map."""
    mask = torch.full((1, *GRID), 3)
    for index in range(number):
        mask[0, 4 + index // 6, 4 + index % 6] = 255
    return mask


def test_candidates_equal_the_loop():
    regions = masks()
    found = uncertain_candidates(regions)
    assert found.any()
    for image, mask in zip(found, regions, strict=True):
        assert [tuple(p) for p in image.nonzero().tolist()] == oracle.candidates(mask)


def test_eight_candidates_at_random_without_repetition():
    regions = masks(uncertain=0.4)[:2]
    accepted = [set(oracle.candidates(mask)) for mask in regions]
    assert all(len(a) > 8 for a in accepted)
    draws = [chosen(regions, keys=keys(2, seed)) for seed in range(20)]
    for draw in draws:
        for places, allowed in zip(draw, accepted, strict=True):
            assert len(places) == 8 == len(set(places)) and set(places) <= allowed
    seen = [set().union(*(draw[i] for draw in draws)) for i in range(2)]
    assert all(len(s) > 10 for s in seen)  # another draw takes other patches


@pytest.mark.parametrize("number, more", [(0, 2), (1, 1), (3, 1), (4, 1), (5, 0), (8, 0)])
def test_supplements_come_from_class_patches(number, more):
    mask = few(number)
    mask[0, 8:], mask[0, :, 10:] = 0, 0  # background on two sides of the cut map
    accepted = oracle.candidates(mask[0])
    assert len(accepted) == number
    for seed in range(10):
        (places,) = chosen(mask, keys=keys(1, seed))
        assert len(set(places)) == len(places) == number + more and set(accepted) <= set(places)
        for row, column in set(places) - set(accepted):
            assert mask[0, row + 3, column + 3] == 3


def test_supplements_come_from_anywhere_without_class_patches():
    for value in (0, 255):
        (places,) = chosen(torch.full((1, *GRID), value), keys=keys(1))
        assert len(places) == len(set(places)) == 2
        assert all(0 <= r < GRID[0] - 6 and 0 <= c < GRID[1] - 6 for r, c in places)


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 0.5))
@settings(max_examples=30, deadline=None)
def test_the_largest_keys_win_as_in_the_loop(seed, classes, uncertain):
    """Candidates first and as many supplements as the loop takes; from many masks to few."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(3, *GRID, generator=generator)
    mask = torch.where(value < classes, 4, 0)
    mask = torch.where(torch.rand(3, *GRID, generator=generator) < uncertain, 255, mask)
    numbers = keys(3, seed)
    numbers[:, :, 0] = 0  # the smallest key of all
    for places, image, row in zip(chosen(mask, keys=numbers), mask, numbers, strict=True):
        assert places == step.uncertain_positions(image, row)


def test_choices_depend_on_the_place_in_the_batch_only_through_keys():
    regions, numbers = masks(uncertain=0.5), keys(6)
    together = chosen(regions, keys=numbers)
    alone = [chosen(regions[i : i + 1], keys=numbers[i : i + 1])[0] for i in range(6)]
    assert [set(a) for a in together] == [set(a) for a in alone]


def test_generator_makes_the_choice_repeatable():
    regions = masks(uncertain=0.5)
    first, second = (chosen(regions, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert first == second != chosen(regions, generator=torch.Generator().manual_seed(4))


def test_keys_choose_evenly():
    mask = few(12)
    accepted = oracle.candidates(mask[0])
    assert len(accepted) == 12
    draws = 3000
    numbers = keys(draws, seed=5)
    positions, valid = select_uncertain(mask.expand(draws, -1, -1), numbers)
    assert valid.all()
    flat = positions[..., 0] * GRID[1] + positions[..., 1]
    counts = torch.bincount(flat.flatten())[[r * GRID[1] + c for r, c in accepted]]
    expected = draws * 8 / 12  # standard deviation about 26
    assert counts.sum() == draws * 8 and (counts - expected).abs().max() < 130


def test_paper_form_takes_every_tested_patch_itself():
    regions = masks()
    for mask, places in zip(regions, chosen(regions, shift=False, most=None), strict=True):
        assert places == [(r + 3, c + 3) for r, c in oracle.candidates(mask)]
        assert all(mask[p] == 255 for p in places)


def test_smallest_grid_and_too_small_ones():
    (places,) = chosen(torch.full((1, 7, 7), 255))
    assert places == [(0, 0)]
    with pytest.raises(ValueError, match="at least 7 x 7"):
        select_uncertain(torch.zeros(1, 20, 6))


def tensors(batch=4, classes=5, width=8):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, classes, width, generator=generator).double()
    patches = torch.randn(batch, width, *GRID, generator=generator).double()
    tags = (torch.rand(batch, classes, generator=generator) > 0.5).double()
    tags[-1] = 0
    return tokens, patches, tags


def test_loss_equals_the_loop_value_and_gradient():
    tokens, patches, tags = tensors()
    tokens.requires_grad_(), patches.requires_grad_()
    positions, valid = select_uncertain(masks(4, uncertain=0.1), keys(4))
    assert 0 < valid.sum() < valid.numel()
    loss = uncertain_region_loss(tokens, patches, tags, positions, valid)
    places = [[tuple(p) for p in i[v].tolist()] for i, v in zip(positions, valid, strict=True)]
    expected = oracle.uncertain(tokens, patches, tags, places)
    torch.testing.assert_close(loss, expected)
    found, none = torch.autograd.grad(loss, [patches, tokens], allow_unused=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, patches)[0])
    assert none is None


@pytest.mark.parametrize("form", ["released", "paper"])
def test_loss_of_nothing_chosen_is_zero(form):
    tokens, patches, tags = tensors()
    patches.requires_grad_()
    positions = torch.full((4, 8, 2), -1)
    loss = uncertain_region_loss(tokens, patches, tags, positions, positions[..., 0] >= 0,
                                 form=form)
    assert loss == 0 and not torch.autograd.grad(loss, patches)[0].any()
    with pytest.raises(ValueError, match="form"):
        uncertain_region_loss(tokens, patches, tags, positions, positions[..., 0] >= 0,
                              form="other")


def test_split_batches_give_the_loss_of_the_global_batch():
    tokens, patches, tags = tensors()
    positions, valid = select_uncertain(masks(4, uncertain=0.1), keys(4))
    whole = uncertain_region_loss(tokens, patches, tags, positions, valid)
    inputs = list(zip(*(t.chunk(2) for t in (tokens, patches, tags, positions, valid)),
                      strict=True))
    mean = torch.tensor([valid.sum() / 2]).double()
    parts = [uncertain_region_loss(*part, reduce=lambda n: mean) for part in inputs]
    assert inputs[0][4].sum() != inputs[1][4].sum()
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)
