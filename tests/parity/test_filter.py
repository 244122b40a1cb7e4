"""Bilateral filter against the release's compiled one (`filter.*` of losses.npz, method §4.9)."""

import numpy as np
import pytest
import torch

from more.filtering.bilateral import bilateral_filter
from more.filtering.exact import ExactGaussian
from more.filtering.permutohedral import PermutohedralLattice
from tests.parity.compare import close

TOLERANCE = {"main": 5e-4, "constant": 5e-4, "ones": 5e-4, "narrow": 2e-2}


def case(data, name):
    image = data["filter.constant_image" if name == "constant" else "filter.images"]
    values = data["filter.values"][:len(image)]
    values = np.ones_like(values) if name == "ones" else values
    sigma_rgb, sigma_xy = (float(sigma) for sigma in data[f"filter.{name}.sigma_rgb_xy"])
    return torch.from_numpy(image), torch.from_numpy(values), sigma_xy, sigma_rgb


@pytest.mark.parametrize("name", TOLERANCE)
def test_lattice(parity, name):
    data = parity("losses")
    actual = bilateral_filter(*case(data, name), PermutohedralLattice)
    close(actual, data[f"filter.{name}.lattice"], TOLERANCE[name])


@pytest.mark.parametrize("name", TOLERANCE)
def test_exact(parity, name):
    data = parity("losses")
    close(bilateral_filter(*case(data, name), ExactGaussian), data[f"filter.{name}.exact"], 1e-5)


def test_the_kind_of_filter_recorded_is_the_lattice(parity):
    assert str(parity("losses")["_bf_kind"]) == "permutohedral"
