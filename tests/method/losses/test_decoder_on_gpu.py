"""The decoder's terms on a GPU: those of the CPU, with one lattice, few launches and one wait."""

from dataclasses import replace

import pytest
import torch

from more.filtering.permutohedral import PermutohedralLattice
from more.method import gradients
from more.method.gradients import LIVE, images_at_a_time
from more.method.losses.classification import decoder_terms
from more.method.losses.energy import energy_filter
from tests.claimed_gpu import GPU, OnGpu, claimed_gpu
from tests.method.test_forward_gradients import LOSS, SIZE, B, C, case, plain, relative
from tests.research.launches import Launches, fused_attention

NAMES = ("seg", "energy")
ONE = 4 * (C + 1) * SIZE[0] * SIZE[1]  # bytes of an image's logits at full size


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No test decides for others how many images go together."""
    monkeypatch.setattr(gradients, "_CHOSEN", {})


def moved():
    """`case` on the claimed GPU."""
    logits, labels, batch = case()
    batch = replace(batch, images=OnGpu(batch.images), box=OnGpu(batch.box))
    return OnGpu(logits.detach()).requires_grad_(), OnGpu(labels), batch


def found(logits, labels, batch, filter=None):
    """(terms, gradient of each)."""
    terms = decoder_terms(logits, labels, batch, NAMES, LOSS, filter)
    return terms, {name: torch.autograd.grad(terms[name], logits, retain_graph=True)[0]
                   for name in NAMES}


@pytest.mark.parametrize("name", ["lattice", "attention"])
@pytest.mark.parametrize("at_a_time", [1, 2, 3])
def test_terms_and_gradients_are_those_of_the_cpu(name, at_a_time, monkeypatch):
    filter = energy_filter(name)
    here = found(*case(), filter)
    monkeypatch.setitem(gradients.BYTES, "cuda", at_a_time * ONE)
    with claimed_gpu():
        logits, *others = moved()
        assert images_at_a_time(logits, SIZE) == at_a_time
        terms, slopes = found(logits, *others, filter)
        there = [{name: value.cpu() for name, value in part.items()} for part in (terms, slopes)]
    expected, most = [here], 5e-3  # by attention it works in 16 bits
    if name == "lattice":
        inputs, most = case(), 5e-6
        oracle = plain(*inputs)
        expected.append((oracle, {term: torch.autograd.grad(oracle[term], inputs[0],
                                                            retain_graph=True)[0]
                                  for term in NAMES}))
    for terms, slopes in expected:
        for term in NAMES:
            torch.testing.assert_close(there[0][term], terms[term].detach(), rtol=most / 2, atol=0)
            assert relative(there[1][term], slopes[term]) < most


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_batch_has_one_lattice_however_it_is_divided(at_a_time, monkeypatch):
    built, build = [], PermutohedralLattice.__init__
    monkeypatch.setattr(PermutohedralLattice, "__init__",
                        lambda self, given: built.append(given.shape) or build(self, given))
    monkeypatch.setitem(gradients.BYTES, "cuda", at_a_time * ONE)
    with claimed_gpu():
        found(*moved())
    assert built == [(B, SIZE[0] * SIZE[1] // 4, 5)]


@pytest.mark.parametrize(("name", "box", "most", "waits"), [
    ("lattice", False, 155, 1), ("lattice", True, 165, 1),
    ("attention", False, 115, 0), ("attention", True, 125, 0)])
def test_launches_waits_and_uploads_of_the_decoder_s_terms(name, box, most, waits):
    """One after another for some images, and term by term, they were about 1,200 of COCO's."""
    loss, filter = replace(LOSS, exclude_padding=box), energy_filter(name)
    with claimed_gpu():
        logits, labels, batch = moved()

        def update():
            terms = decoder_terms(logits, labels, batch, NAMES, loss, filter)
            (0.12 * terms["seg"] + 0.05 * terms["energy"]).backward()
        update()  # what is kept is made
        count = Launches()
        with fused_attention(count), count:
            update()
    assert 50 < sum(count.operations.values()) <= most
    assert sum(count.waits.values()) == waits and not count.uploads


@pytest.mark.parametrize(("free", "images", "parts"), [
    (2**40, 8, 8), (2 * LIVE * ONE * 7, 8, 4), (2 * LIVE * ONE * 5, 9, 5),
    (2 * LIVE * ONE, 8, 1), (0, 8, 1)])
def test_on_a_gpu_half_of_the_free_memory_is_taken_in_equal_parts(free, images, parts, monkeypatch):
    logits = torch.empty(images, C + 1, 5, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**41))
    assert images_at_a_time(OnGpu(logits), SIZE) == parts
    # What is free later does not change it, or a run's last digits would depend on it.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**41 - free, 2**41))
    assert images_at_a_time(OnGpu(logits), SIZE) == parts
    assert images_at_a_time(OnGpu(logits), (20, 28)) >= parts  # another shape is asked for anew


def test_what_pytorch_holds_and_does_not_use_is_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**41))
    monkeypatch.setattr(torch.cuda, "memory_reserved",
                        lambda device: 2 * LIVE * ONE * 4 + 9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 9)
    assert images_at_a_time(OnGpu(torch.empty(8, C + 1, 5, 7)), SIZE) == 4
    assert GPU.type == "cuda"
