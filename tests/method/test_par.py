"""PAR on a GPU is PAR on the CPU, in few operations; and what the divisions of its work leave."""

import pytest
import torch

from more.method import par
from more.method.par import PixelAdaptiveRefinement
from tests.claimed_gpu import GPU, OnGpu, claimed_gpu
from tests.oracles import labels as oracle
from tests.research.launches import Launches

ALL = (1, 2, 4, 8, 12, 24)
SIZES = [((1, 4), 9, 7), ((1, 2, 6), 5, 5), (ALL, 33, 40), (ALL, 6, 50), ((3,), 1, 4)]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def both_devices(one: PixelAdaptiveRefinement, images, masks):
    """What the CPU and the claimed GPU make of the same images and masks."""
    with claimed_gpu():
        there = one(images.to(GPU), masks.to(GPU))
        assert isinstance(there, OnGpu)
        return one(images, masks), there.cpu()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dilations", "height", "width"), SIZES)
def test_par_on_a_gpu_equals_the_cpu_and_sums_of_shifted_copies(dilations, height, width, batch):
    images = drawn(batch, 3, height, width, dtype=torch.float64)
    masks = drawn(batch, 4, height, width, seed=1, dtype=torch.float64)
    one = PixelAdaptiveRefinement(dilations, 5)
    here, there = both_devices(one, images, masks)
    shifts = oracle.par_by_shifts(masks, one.weights(images), dilations, 5)
    torch.testing.assert_close(here, shifts)
    torch.testing.assert_close(there, shifts)
    assert here.is_contiguous() and there.is_contiguous() and not torch.equal(here, masks)


def test_par_on_a_gpu_equals_the_cpu_in_float32_and_enlarges_masks():
    images, masks = drawn(2, 3, 40, 32), drawn(2, 3, 20, 16, seed=1)
    here, there = both_devices(PixelAdaptiveRefinement(), images, masks)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


def test_images_of_one_colour_have_finite_weights_on_a_gpu():
    here, there = both_devices(PixelAdaptiveRefinement((1, 2), 2), torch.full((1, 3, 7, 6), 0.4),
                               drawn(1, 2, 7, 6))
    torch.testing.assert_close(there, here)
    assert torch.isfinite(there).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("limit", [1, 10**4])
def test_weights_do_not_depend_on_what_is_made_at_a_time(device, limit, monkeypatch):
    images, one = drawn(2, 3, 9, 7, dtype=torch.float64), PixelAdaptiveRefinement((1, 4))
    whole = one.weights(images)
    monkeypatch.setitem(par.BAND, device, limit)
    with claimed_gpu():
        parts = one.weights(images.to(GPU if device == "cuda" else "cpu")).cpu()
    torch.testing.assert_close(parts, whole)


def test_ten_rounds_of_par_are_at_most_30_operations_on_a_gpu():
    one, images, masks = PixelAdaptiveRefinement(), drawn(2, 3, 16, 20), drawn(2, 6, 16, 20, seed=1)
    with claimed_gpu():
        images, masks = images.to(GPU), masks.to(GPU)
        one(images, masks)
        with Launches() as count:
            one(images, masks)
    assert sum(count.operations.values()) <= 30, count.operations
    assert count.operations["aten::_embedding_bag_forward_only"] == one.iterations
    assert not count.uploads and not count.waits


def test_what_sizes_alone_give_is_kept_for_passes_with_and_without_gradient():
    dilations = (1, 5)  # of no other test: nothing is kept yet
    images, masks = drawn(1, 3, 8, 9), drawn(1, 2, 8, 9, seed=1)
    one = PixelAdaptiveRefinement(dilations, 2)
    with torch.inference_mode():
        first = one(images, masks).clone()
    assert torch.equal(one(images, masks), first)
    numbers = par._position_weights(dilations, one.colour_width, images.dtype, images.device,
                                    one.position_weight)
    kept = [par._places(dilations, 8, 9, images.device), *par._entries_on_cpu(dilations, 8, 9, 1),
            numbers]
    assert kept[0] is par._places(dilations, 8, 9, images.device)
    assert not any(part.is_inference() for part in kept)


def test_numbers_of_places_beyond_32_bits_get_64():
    places = torch.empty(2**20, 48, dtype=torch.int32, device="meta")
    assert [kind.dtype for kind in par._entries(places, 2)] == [torch.int32] * 2
    assert [kind.dtype for kind in par._entries(places, 64)] == [torch.int64] * 2
