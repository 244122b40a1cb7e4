"""Terms whose gradient is made in the forward pass: as plain autograd has it, with less kept."""

from dataclasses import replace

import pytest
import torch

from more.method import gradients
from more.method.cam import PresentMaps, present_classes, resize
from more.method.gradients import enlarge, images_at_a_time, with_forward_gradients
from more.method.labels import Batch
from more.method.losses import classification, energy
from more.method.losses.classification import balanced_cross_entropy, decoder_terms
from more.method.losses.energy import dense_energy
from more.method.network import NetworkOutput
from more.method.objective import make_objective
from more.plan.live_bytes import LiveBytes
from tests.method.objectives import VOC, voc

B, C, GRID, SIZE = 3, 4, (5, 7), (40, 56)
BOX = torch.tensor([[0, 40, 0, 56], [3, 30, 0, 50], [0, 20, 9, 56]])
LOSS = voc("loss.energy_weight=1e-3", "loss.exclude_padding=True").loss


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case():
    """(logits of patches, labels, batch)."""
    images = resize(drawn(B, 3, 6, 6, seed=1), SIZE)
    labels = torch.randint(0, C + 1, (B, *GRID), generator=torch.Generator().manual_seed(2))
    labels[drawn(B, *GRID, seed=3) > 0.5] = 255
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    batch = Batch(images=images, tags=torch.ones(B, C), cams=None, aux_cams=None, box=BOX)
    return drawn(B, C + 1, *GRID).requires_grad_(), labels, batch


def plain(logits, labels, batch):
    """Both terms with autograd through logits at full size, all images together."""
    full = resize(logits, SIZE)
    images = batch.images * torch.tensor(batch.std).view(3, 1, 1) \
        + torch.tensor(batch.mean).view(3, 1, 1)
    return {"seg": balanced_cross_entropy(full, labels, batch.count_reduce, batch.share),
            "energy": dense_energy(full, images, labels, BOX, LOSS.energy_weight)}


def gradient(total, logits):
    return torch.autograd.grad(total, logits)[0]


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
@pytest.mark.parametrize("names", [("seg",), ("energy",), ("seg", "energy")])
def test_value_and_gradient_are_those_of_plain_autograd(names, at_a_time, monkeypatch):
    logits, labels, batch = case()
    monkeypatch.setitem(gradients.BYTES, "cpu", at_a_time * (C + 1) * SIZE[0] * SIZE[1] * 4)
    assert images_at_a_time(logits, SIZE) == at_a_time
    found, expected = decoder_terms(logits, labels, batch, names, LOSS), plain(*case())
    assert set(found) == set(names)
    weights = {"seg": 0.12, "energy": -7.0 * 65536}
    for name in names:
        assert found[name].shape == () and found[name] != 0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0)
    total, other = (sum(weights[name] * terms[name] for name in names)
                    for terms in (found, plain(logits, labels, batch)))
    assert relative(gradient(total, logits), gradient(other, logits)) < 1e-6


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
@pytest.mark.parametrize("name", ["seg", "energy"])
def test_the_gradient_of_a_term_alone_is_equal_bit_by_bit(name, at_a_time, monkeypatch):
    logits, labels, batch = case()
    for module in (classification, energy):  # a product of matrices differs by its number of rows
        monkeypatch.setattr(module, "enlarge", resize)
    monkeypatch.setitem(gradients.BYTES, "cpu", at_a_time * (C + 1) * SIZE[0] * SIZE[1] * 4)
    found = decoder_terms(logits, labels, batch, (name,), LOSS)[name]
    expected = gradient(plain(logits, labels, batch)[name], logits)
    assert expected.any() and torch.equal(gradient(found, logits), expected)


def test_without_gradients_only_values_are_made():
    logits, labels, batch = case()
    expected = decoder_terms(logits, labels, batch, ("seg", "energy"), LOSS)
    with torch.no_grad():
        first = decoder_terms(logits, labels, batch, ("seg", "energy"), LOSS)
    second = decoder_terms(logits.detach(), labels, batch, ("seg", "energy"), LOSS)
    for terms in (first, second):
        assert not any(term.requires_grad for term in terms.values())
        assert all(torch.equal(terms[name], expected[name]) for name in expected)
    with torch.no_grad():
        with_forward_gradients(logits, {"one": lambda some, rows: _Refusing.apply(some)}, SIZE)


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, upstream):
        raise AssertionError("no gradient is wanted")


def test_gradients_once_and_for_a_kept_graph_again():
    logits, labels, batch = case()
    terms = decoder_terms(logits, labels, batch, ("seg", "energy"), LOSS)
    first = torch.autograd.grad(terms["seg"], logits, retain_graph=True)[0]
    assert torch.equal(gradient(3 * terms["seg"], logits), 3 * first)
    terms = decoder_terms(logits, labels, batch, ("seg",), LOSS)
    factor = torch.ones((), requires_grad=True)
    slope, = torch.autograd.grad(factor * terms["seg"], logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_term_outside_of_the_total_adds_nothing_not_even_nan():
    logits = drawn(B, 1, 2, 2).requires_grad_()
    summands = {"good": lambda some, rows: (some * 2).sum(),
                "bad": lambda some, rows: (some * float("nan")).sum()}
    terms = with_forward_gradients(logits, summands, (2, 2))
    assert torch.equal(gradient(terms["good"], logits), torch.full_like(logits, 2))
    terms = with_forward_gradients(logits, summands, (2, 2))
    assert gradient(terms["good"] + terms["bad"], logits).isnan().all()


def test_counts_are_averaged_over_ranks_once():
    logits, labels, batch = case()
    seen = []
    for factor in (1.0, 0.5):
        def reduce(numbers, factor=factor):
            seen.append(numbers)
            return numbers * factor
        batch = replace(batch, count_reduce=reduce)
        seen.append(decoder_terms(logits, labels, batch, ("seg",), LOSS)["seg"])
    assert len(seen) == 4 and torch.equal(seen[0], seen[2])
    expected = torch.stack([(labels == 0).sum(), ((labels > 0) & (labels < 255)).sum()])
    assert torch.equal(seen[0].long(), expected)
    torch.testing.assert_close(seen[3], 2 * seen[1])


def test_logits_in_16_bits_and_under_autocast():
    logits, labels, batch = case()
    half = logits.detach().bfloat16().requires_grad_()
    same = half.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        terms = decoder_terms(half, labels, batch, ("seg", "energy"), LOSS)
        slope = gradient(terms["seg"] + terms["energy"], half)
    others = decoder_terms(same, labels, batch, ("seg", "energy"), LOSS)
    assert slope.dtype == torch.bfloat16 and terms["seg"].dtype == torch.float32
    assert torch.equal(slope, gradient(others["seg"] + others["energy"], same).bfloat16())


@pytest.mark.parametrize("size", [(40, 56), (13, 7), (5, 30), (5, 7)])
def test_enlarging_is_resize_with_a_closer_gradient(size):
    x = drawn(2, 3, *GRID).double().requires_grad_()
    assert torch.equal(enlarge(x, size), resize(x, size))
    upstream = drawn(2, 3, *size, seed=1).double()
    expected = gradient((resize(x, size) * upstream).sum(), x)
    found = gradient((enlarge(x, size) * upstream).sum(), x)
    torch.testing.assert_close(found, expected)
    single = x.detach().float().requires_grad_()
    found = gradient((enlarge(single, size) * upstream.float()).sum(), single)
    assert found.dtype == torch.float32 and relative(found, expected) < 1e-6


@pytest.mark.parametrize(("classes", "units"), [(20, 5.0), (80, 4.0)])
def test_the_objective_needs_the_memory_of_a_few_full_size_logits(classes, units):
    """One image of 448 pixels. With maps of all classes, and all that autograd keeps, it needed
    7.5 times (20 classes) and 6.6 times (80) its logits at full size."""
    grid, side, generator = (28, 28), 448, torch.Generator().manual_seed(0)
    tags = (torch.arange(classes) < 3).float()[None]
    sizes = {"class_tokens": (classes, 16), "graph_tokens": (classes, 16),
             "patch_tokens": (16, *grid), "aux_patch_tokens": (16, *grid), "logits": (classes,),
             "aux_logits": (classes,), "seg_logits": (classes + 1, *grid),
             "cam": (classes, *grid), "aux_cam": (classes, *grid)}
    output = NetworkOutput(**{name: torch.randn(1, *size, generator=generator).requires_grad_()
                              for name, size in sizes.items()})
    images, kept = torch.randn(1, 3, side, side, generator=generator), present_classes(tags)
    keys = torch.rand(1, 2, 28 * 28, generator=generator)
    unit = 4 * (classes + 1) * side**2
    with LiveBytes() as live:
        cams, aux_cams = (PresentMaps(torch.rand(1, 3, side, side, generator=generator), *kept)
                          for _ in range(2))
        terms = make_objective(VOC)(output, Batch(images=images, tags=tags, cams=cams,
                                                  aux_cams=aux_cams, keys=keys), 3000)
        between = live.now
        terms["total"].backward()
    assert output.seg_logits.grad.any() and terms["energy"] != 0
    assert 3 * unit < live.peak < units * unit
    assert between < 24e6  # maps of three classes twice, PAR's places, gradients of the patches
