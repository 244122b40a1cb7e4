"""GCR: properties of the layer and its options."""

import itertools

import pytest
import torch
from torch.nn.functional import leaky_relu, normalize

from more.method.gcr import GraphCategoryRepresentation

OPTIONS = list(itertools.product(("classes", "patches"), ("channel_sums", "inner"),
                                 ("released", "paper"), ("dot", "cosine")))


def tokens(classes: int, patches: int, width: int = 12, batch: int = 2):
    torch.manual_seed(3)
    return torch.randn(batch, classes, width), torch.randn(batch, patches, width)


def plain_formula(gcr: GraphCategoryRepresentation, c, f):
    """The method's text, one class and one neighbour at a time."""
    out = torch.empty_like(c)
    for b in range(len(c)):
        source = f[b] if gcr.neighbours == "patches" else torch.cat([c[b], f[b]])
        tails, heads = gcr.tail(source), gcr.head(c[b])
        count = len(f[b]) // 2 if gcr.neighbours == "patches" else len(c[b]) // 2
        for i, e in enumerate(heads):
            if gcr.similarity == "cosine":
                scores = normalize(tails, dim=-1) @ normalize(e, dim=0)
            else:
                scores = tails @ e / len(e) ** 0.5
            best = scores.argsort(descending=True)[:count]
            share = scores[best].softmax(0)
            weights = []
            for p, tail in zip(share, tails[best], strict=True):
                gate = torch.tanh(e + (1 - p) * e + p * tail)
                product = tail.sum() * gate.sum()
                weights.append(product if gcr.gate == "channel_sums" else (tail * gate).sum())
            z = torch.stack(weights).softmax(0) @ tails[best]
            if gcr.output == "paper":
                y = (leaky_relu(gcr.sum_branch(e + z)) + leaky_relu(gcr.product_branch(e * z)))
            else:
                y = gcr.norm(leaky_relu(gcr.sum_branch(c[b, i] + 0.1 * (e + z)))
                             + leaky_relu(gcr.product_branch(c[b, i] + 0.1 * e * z)))
            out[b, i] = y
    return out


@torch.no_grad()
@pytest.mark.parametrize(("neighbours", "gate", "output", "similarity"), OPTIONS)
def test_every_option_follows_its_formula(neighbours, gate, output, similarity):
    torch.manual_seed(0)
    gcr = GraphCategoryRepresentation(12, neighbours, gate, output, similarity).double()
    c, f = (x.double() for x in tokens(5, 9))
    torch.testing.assert_close(gcr(c, f), plain_formula(gcr, c, f))


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_few_classes_give_finite_output_and_all_gradients(classes):
    gcr = GraphCategoryRepresentation(12)
    c, f = tokens(classes, 9)
    c.requires_grad_()
    out = gcr(c, f)
    assert out.shape == c.shape and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gcr.parameters())
    if classes == 1:  # no neighbour: the tails say nothing
        assert gcr.tail.weight.grad.abs().max() == 0


@pytest.mark.parametrize("neighbours", ["classes", "patches"])
def test_patches_get_no_gradient(neighbours):
    c, f = tokens(4, 9)
    f.requires_grad_()
    GraphCategoryRepresentation(12, neighbours)(c, f).sum().backward()
    assert f.grad is None


@torch.no_grad()
def test_order_of_patches_does_not_matter():
    gcr = GraphCategoryRepresentation(12).double()
    c, f = (x.double() for x in tokens(6, 9))
    torch.testing.assert_close(gcr(c, f), gcr(c, f[:, torch.randperm(9)]))


@torch.no_grad()
def test_scores_stay_in_float32_under_autocast():
    gcr = GraphCategoryRepresentation(12)
    c, f = tokens(6, 9)
    seen = {}
    gather = gcr.gather
    gcr.gather = lambda h, t, k: seen.setdefault("out", gather(h, t, k))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gcr(c, f)
    assert seen["out"].dtype == torch.float32 and out.isfinite().all()


def test_unknown_option():
    with pytest.raises(ValueError, match="gate is 'sum'; .* channel_sums, inner"):
        GraphCategoryRepresentation(12, gate="sum")
