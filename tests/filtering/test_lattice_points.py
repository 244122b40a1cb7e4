"""Numbers of lattice points: unique, whatever their width, and sorted without mixing equals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from more.filtering.lattice_points import enclosing_simplex, encode
from more.filtering.permutohedral import PermutohedralLattice, _sort
from tests.filtering.oracle import lattice_filter


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("spread", "dtype"), [(3, torch.int32), (300, torch.int64)])
def test_codes_of_both_widths_give_the_plain_lattice(spread, dtype):
    near = random(1, 40, 5) * 2
    features = torch.cat([near, near[:, :20] + spread], 1)  # two heaps far from each other
    values = random(1, 3, 60, seed=1)
    lattice = PermutohedralLattice(features)
    assert lattice.codes.dtype == dtype
    expected = lattice_filter(features[0].numpy(), values[0].numpy())
    np.testing.assert_allclose(lattice.filter(values)[0].numpy(), expected, atol=1e-9)


def test_where_vectors_lie():
    features = random(3, 50) * 4
    cells, last, weights = enclosing_simplex(features)
    assert (cells.sum(0) == 0).all() and (weights >= -1e-12).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(50, dtype=torch.float64))
    assert (last.sort(0).values == torch.arange(4)[:, None]).all()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_neighbour_has_the_code_of_another_point(d):
    """All points of a small full box and all their neighbours, by coordinates and by codes."""
    box = [(*cells, -sum(cells)) for cells in itertools.product(range(2), repeat=d)]
    both = list(itertools.product(box, itertools.permutations(range(d + 1))))
    cells = torch.tensor([cells for cells, _ in both], dtype=torch.float64).T
    last = torch.tensor([last for _, last in both]).T
    found = encode(cells, last, 1)
    codes = found.codes
    points = {}
    for p, c in itertools.product(range(len(both)), range(d + 1)):
        lower = (c > last[:, p]).long()
        place = tuple((c + (d + 1) * (cells[:, p].long() - lower)).tolist())
        assert sum(place) == 0
        assert points.setdefault(place, int(codes[c, p])) == int(codes[c, p])
    assert len(set(points.values())) == len(points)
    lattice = object.__new__(PermutohedralLattice)
    lattice.batch, lattice.dimensions, lattice.device = 1, d, codes.device
    ordered, order = _sort(codes.t().flatten())
    bounds = lattice._number_points(ordered, torch.tensor(True), found.bounds)
    lattice._build_operators(order, torch.ones(len(both), d + 1))
    lattice._build_neighbours(ordered, order, found.axes, bounds)
    assert torch.equal(lattice.codes, codes.unique().to(lattice.codes.dtype))
    assert lattice.points == len(points)
    by_code = {code: place for place, code in points.items()}
    for axis, rows in enumerate(lattice._neighbours):
        step = torch.full((d + 1,), -1)
        step[axis] = d
        *rows, missing = rows.tolist()
        assert missing == [lattice.points] * 3
        assert [row[0] for row in rows] == list(range(len(rows)))
        for code, (_, *pair) in zip(lattice.codes.tolist(), rows, strict=True):
            here = torch.tensor(by_code[code])
            for neighbour, sign in zip(pair, (-1, 1), strict=True):
                wanted = points.get(tuple((here + sign * step).tolist()))
                found = None if neighbour == lattice.points else int(lattice.codes[neighbour])
                assert found == wanted


@pytest.mark.parametrize("top", [2**20, 2**40, 2**61])
def test_sorting_keeps_the_order_of_equals(top):
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 50, 5000) * (top // 50))
    codes = codes.int() if top < 2**31 else codes
    ordered, order = _sort(codes)
    expected = torch.sort(codes, stable=True)
    assert torch.equal(ordered, expected.values) and torch.equal(order, expected.indices)
    assert ordered.dtype == codes.dtype
