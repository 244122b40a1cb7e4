"""Benches of losses, labels and the energy: results checked first, figures that fit together."""

from __future__ import annotations

import json

import pytest
import torch

from more.errors import UserError
from tests.research import growth, kernels
from tests.research.filter import run as run_filter
from tests.research.kernels import Kernel, compare, difference, peak_bytes
from tests.research.labels import run as run_labels
from tests.research.losses import run as run_losses


def facts(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def consistent(lines: list[dict]) -> bool:
    for line in lines:
        assert line["ms"] > 0 and line["MB"] > 0
        assert line["ratio"] == pytest.approx(line["plain ms"] / line["ms"])
        assert line["MB ratio"] == pytest.approx(line["MB"] / line["plain MB"])
        assert 0 <= line["gap"] < 5e-4
    return True


def test_losses_give_consistent_json(capsys):
    run_losses("4,12", 8, 2, 16, 1, False, None, "cpu", True)
    found = facts(capsys)
    assert found["bench"] == "losses" and found["patches"] == 8 and found["dim"] == 16
    assert consistent(found["lines"])
    assert [(line["what"], line["classes"]) for line in found["lines"]] == [
        (name, count) for count in (4, 12) for name in ("URE", "CRE", "PTC", "GCR")]
    assert 0 < found["uncertain patches"] < 1


def test_losses_against_formulas_by_position(capsys):
    run_losses("4", 7, 2, 16, 1, False, None, "cpu", True, by_position=True)
    found = facts(capsys)
    assert found["plain formulas"] == "by position" and consistent(found["lines"])
    assert {line["what"] for line in found["lines"]} == {"URE", "CRE", "PTC", "GCR"}


def test_labels_and_energy_give_consistent_json(capsys):
    run_labels("3", 4, 2, 1, "cpu", True)
    found = facts(capsys)
    assert found["pixels"] == 64 and consistent(found["lines"])
    assert [line["what"] for line in found["lines"]] == ["label map", "refined labels"]
    run_filter("3", 4, 2, 1, "cpu", True)
    found = facts(capsys)
    assert found["pixels"] == 32 and consistent(found["lines"])
    assert [(line["what"], line["classes"]) for line in found["lines"]] == [
        ("energy", 3), ("energy, attention", 3)]


def test_different_results_are_not_timed():
    def other(factor):
        return Kernel("x", lambda: {"a": torch.ones(3) * factor}, lambda: {"a": torch.ones(3)})

    assert compare([other(1.00005)], 1)[0]["gap"] == pytest.approx(5e-5, rel=0.01)
    for factor in (1.001, float("nan")):
        with pytest.raises(RuntimeError, match="x: the results differ"):
            compare([other(factor)], 1)
    labels = Kernel("y", lambda: {"a": torch.tensor([1, 2])}, lambda: {"a": torch.tensor([1, 3])})
    with pytest.raises(RuntimeError, match="differ by 0.5"):
        compare([labels], 1)
    with pytest.raises(RuntimeError, match="shape"):
        difference({"a": torch.ones(2)}, {"a": torch.ones(3)})


def test_short_work_is_repeated_and_long_work_is_not(monkeypatch):
    for found, mean in (([9.0, 0.02, 0.01, 0.03, 7.0], 0.02), ([9.0, 0.4, 7.0], 0.4)):
        times = iter(found)
        monkeypatch.setattr(kernels, "spent", lambda work, device, times=times: next(times))
        assert kernels.block(lambda: None) == pytest.approx(mean)
        assert next(times) == 7.0


def test_peak_counts_temporaries_and_forgets_what_is_freed():
    before = torch.ones(10**6)

    def work():
        first = before + 1
        second = first * 2
        del first
        third = second + 1
        return third, torch.ones(5 * 10**5)

    def inside():  # a sort makes its indices and values, and drops the indices
        return torch.sort(before)[0]

    assert peak_bytes(work) == pytest.approx(10e6, rel=0.001)
    assert peak_bytes(inside) >= 12e6


@pytest.mark.parametrize("text", ["", "0", "20,x", "20;80"])
def test_numbers_of_classes_are_checked(text):
    with pytest.raises(UserError, match="not a list of numbers"):
        kernels.numbers(text, "--classes")


def test_growth_fits_exponents_and_draws(tmp_path, capsys, monkeypatch):
    times = [{"what": name, "classes": c, "patches": n, "ms": 0.1 * c**a * n**b}
             for name, (a, b) in growth.NEEDED.items() for c in (2, 4, 8) for n in (9, 16, 25)]
    for line in times:  # the fits run through the middle size of the other number
        line["ms"] *= 9 if (line["classes"], line["patches"]) == (8, 25) else 1
    for fit in growth.exponents(times):
        assert (fit["classes"], fit["patches"]) == pytest.approx(growth.NEEDED[fit["what"]])
    monkeypatch.setattr(growth.measure, "__defaults__", ((2, 4), (7, 9), kernels.CPU))
    plot = tmp_path / "growth.png"
    run_losses("20", 7, 1, 8, 1, True, plot, "cpu", True)
    found = facts(capsys)
    assert len(found["lines"]) == 16 and all(line["ms"] > 0 for line in found["lines"])
    assert {fit["what"] for fit in found["exponents"]} == {"URE", "CRE", "PTC", "GCR"}
    assert plot.stat().st_size > 10_000
