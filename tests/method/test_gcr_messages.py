"""The graph's message: plain formula, finite differences, tiles, autocast, checkpoints."""

import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from more.method import gcr
from more.method.gcr import GraphCategoryRepresentation, message
from tests.oracles import step

GATES = ("channel_sums", "inner")


def case(batch=2, classes=5, tails=7, count=3, width=6):
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(batch, classes, width, generator=generator).double().requires_grad_()
    tail = torch.randn(batch, tails, width, generator=generator).double().requires_grad_()
    scale = torch.rand(batch, classes, count, generator=generator).double().requires_grad_()
    index = torch.rand(batch, classes, tails, generator=generator).topk(count, dim=-1).indices
    return heads, tail, index, scale


def near(tails, index):
    """Neighbours laid out edge by edge, [B, C·K, D]."""
    return torch.stack([t[i.flatten()] for t, i in zip(tails, index, strict=True)])


def plain(heads, tails, index, scale, gate):
    """With autograd and every edge in memory."""
    n = near(tails, index).view(*index.shape, -1)
    share = (scale * torch.einsum("bcd,bckd->bck", heads, n)).softmax(-1)[..., None]
    g = torch.tanh((2 - share) * heads[:, :, None] + share * n)
    weight = n.sum(-1) * g.sum(-1) if gate == "channel_sums" else (n * g).sum(-1)
    return torch.einsum("bck,bckd->bcd", weight.softmax(-1), n)


@pytest.mark.parametrize(("gate", "limit"), itertools.product(GATES, (1, 300, 10**6)))
def test_value_and_gradients_equal_the_formula_for_any_tile(gate, limit, monkeypatch):
    monkeypatch.setitem(gcr.TILE, "cpu", limit)
    heads, tails, index, scale = case()
    probe = torch.randn(heads.shape, dtype=torch.float64)
    given = [heads, tails, scale]
    expected = plain(heads, tails, index, scale, gate)
    wanted = torch.autograd.grad((expected * probe).sum(), given)
    for found in (message(heads, tails, index, scale, gate),
                  message(heads, near(tails, index), None, scale, gate)):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * probe).sum(), given), wanted)


@pytest.mark.parametrize("gate", GATES)
def test_finite_differences(gate):
    heads, tails, index, scale = case(1, 2, 4, 2, 3)
    assert torch.autograd.gradcheck(lambda h, t, s: message(h, t, index, s, gate),
                                    (heads, tails, scale))


def layer(classes, patches, width=16):
    torch.manual_seed(1)
    return (GraphCategoryRepresentation(width), torch.randn(2, classes, width, requires_grad=True),
            torch.randn(2, patches, width))


# 4 classes have 8 edges among 34 tails: only these tails are made. 12 have 72 among 42.
SIZES = pytest.mark.parametrize(("classes", "patches"), [(4, 30), (12, 30)])


@SIZES
def test_layer_equals_the_loop_over_classes(classes, patches):
    graph, tokens, rows = (x.double() for x in layer(classes, patches))
    tokens = tokens.detach().requires_grad_()
    inputs = [tokens, *graph.parameters()]
    found = graph(tokens, rows)
    expected = step.graph_tokens(graph, tokens, rows.transpose(1, 2).unflatten(2, (5, 6)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs),
                               torch.autograd.grad(expected.square().sum(), inputs))


def test_few_edges_make_few_tails():
    made = []
    for classes in (4, 12):
        graph, tokens, rows = layer(classes, 30)
        graph.tail.register_forward_hook(lambda module, given, out: made.append(tuple(out.shape)))
        graph(tokens, rows)
    # Scores of both sources [B,C,T], tails of 4·2 edges; then tails of all 12 + 30 sources.
    assert made == [(2, 4, 4), (2, 4, 30), (2, 8, 16), (2, 12, 16), (2, 30, 16)]


@SIZES
def test_autocast_stays_near_float32(classes, patches):
    graph, tokens, rows = layer(classes, patches)
    wide = graph(tokens, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = graph(tokens, rows)
        narrow.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in graph.parameters())
    assert (narrow.float() - wide).abs().mean() < 0.05 * wide.abs().mean()


@SIZES
def test_checkpoint_gives_the_same_gradients(classes, patches):
    graph, tokens, rows = layer(classes, patches)
    inputs = [tokens, *graph.parameters()]
    whole = torch.autograd.grad(graph(tokens, rows).square().sum(), inputs)
    again = checkpoint(graph, tokens, rows, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), inputs), whole,
                               rtol=0, atol=0)
