"""The exact Gaussian against its definition."""

import torch

from more.filtering.exact import ExactGaussian


def test_definition_and_chunks():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 30, 4, generator=generator, dtype=torch.float64) * 3
    values = torch.rand(2, 5, 30, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    expected = torch.einsum("bij,bkj->bki", kernel, values)
    for chunk in (7, 30, 1000):
        torch.testing.assert_close(ExactGaussian(features, chunk).filter(values), expected)


def test_far_from_the_origin_nothing_cancels():
    features = torch.tensor([[[1e4], [1e4 + 1]]])
    out = ExactGaussian(features).filter(torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(out, torch.tensor([[[1.0, 0.6065307]]]))
