"""Constants are made once for a device; a second pass uploads what is its own and nothing else."""

import pytest
import torch

from more import tensors
from more.data.colours import network_input
from more.method.gradients import enlarge
from more.method.labels import (
    denormalise,
    refined_label,
    scale_box,
    undo_normalisation,
)
from more.method.par import PixelAdaptiveRefinement
from more.tensors import MEAN, STD, box_mask, constant, counting
from tests.claimed_gpu import GPU, claimed_gpu
from tests.research.launches import Launches

NEVER_AGAIN = {"aten::eye", "aten::linspace", "aten::upsample_linear1d"}


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch():
    return {"images": (drawn(2, 12, 16, 3) * 255).byte(), "jitter": drawn(2, 13),
            "box": torch.tensor([[0, 12, 2, 16], [3, 9, 0, 16]])}


def prepared():
    return network_input(batch(), GPU, MEAN, STD)


def grid_box():
    return scale_box(batch()["box"].to(GPU), (12, 16), (3, 4))


def inside():
    return box_mask(batch()["box"].to(GPU), (12, 16))


def seen():
    return denormalise(drawn(2, 3, 12, 16).to(GPU))


def levels():
    return undo_normalisation(drawn(2, 3, 12, 16).to(GPU))


def enlarged():
    small = drawn(2, 3, 4, 5).to(GPU).requires_grad_()
    enlarge(small, (12, 16)).square().sum().backward()
    return small.grad


def refined():
    given = [part.to(GPU) for part in (drawn(2, 3, 12, 16), drawn(2, 3, 12, 16, seed=1),
                                       torch.ones(2, 3), batch()["box"])]
    return refined_label(*given[:3], 0.7, 0.25, PixelAdaptiveRefinement((1, 2), 2), given[3])


OWN = {prepared: 3, grid_box: 1, inside: 1, seen: 1, levels: 1, enlarged: 1, refined: 4}


@pytest.mark.parametrize("work", OWN, ids=lambda work: work.__name__)
def test_a_second_pass_uploads_only_what_is_its_own(work):
    with claimed_gpu():
        first = work()
        with Launches() as count:
            second = work()
    assert torch.equal(first.cpu(), second.cpu()), "a kept tensor has been written to"
    assert sum(count.uploads.values()) == OWN[work], count.uploads
    assert not count.operations.keys() & NEVER_AGAIN


@pytest.mark.parametrize("work", OWN, ids=lambda work: work.__name__)
def test_nothing_writes_to_a_kept_tensor(work, monkeypatch):
    kept = []
    for name in ("_constant", "_counting"):
        made = getattr(tensors, name)

        def noted(*args, made=made):
            part = made(*args)
            kept.append((part, part.cpu().clone()))
            return part
        monkeypatch.setattr(tensors, name, noted)
    with claimed_gpu():
        work()
    assert all(torch.equal(part.cpu(), before) for part, before in kept)


def test_constants_are_kept_by_value_type_and_device():
    like = torch.zeros(1)
    kept = constant((1.5, 2.5), like)
    assert kept is constant([1.5, 2.5], like) and kept.tolist() == [1.5, 2.5]
    assert constant((1.5, 2.5), like.double()).dtype == torch.float64
    assert constant((1, 2), torch.zeros(1, dtype=torch.long)).tolist() == [1, 2]
    assert counting(4, like) is counting(4, like) and counting(4, like).tolist() == [0, 1, 2, 3]
    with claimed_gpu():
        there = constant((1.5, 2.5), like.to(GPU))
        assert there.device == GPU and there is constant((1.5, 2.5), like.to(GPU))
    assert constant((1.5, 2.5), like) is kept


def test_what_inference_mode_made_serves_a_pass_with_gradient():
    images, factor = drawn(1, 3, 4, 4), (41.0, 42.0, 43.0)  # of no other test
    with torch.inference_mode():
        undo_normalisation(images, (1.0, 2.0, 3.0), factor)
    leaf = images.requires_grad_()
    undo_normalisation(leaf, (1.0, 2.0, 3.0), factor).sum().backward()
    assert leaf.grad[0, :, 0, 0].tolist() == list(factor)


def test_the_number_of_kept_constants_is_bounded():
    like = torch.zeros(1)
    for value in range(300):
        constant((float(value), -1.0), like), counting(value, like)
    kept = tensors._constant.cache_info(), tensors._counting.cache_info()
    assert all(info.currsize <= info.maxsize <= 128 for info in kept)
