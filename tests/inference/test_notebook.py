"""The notebook of the Python API: committed without outputs, and it runs from top to bottom."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (extra dev)")
FILE = ROOT / ".github" / "more.ipynb"


@pytest.fixture
def notebook():
    found = nbformat.read(FILE, as_version=4)
    nbformat.validate(found)
    return found


def cells(notebook, kind: str) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_it_holds_no_outputs_and_explains_each_step(notebook):
    for cell in cells(notebook, "code"):
        assert cell.outputs == [] and cell.execution_count is None, "clear all outputs"
        ast.parse(cell.source)
    assert len(cells(notebook, "markdown")) >= 8
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_it_shows_every_call_of_the_api(notebook):
    source = "\n".join(cell.source for cell in cells(notebook, "code"))
    for call in ("more.open(", "more.load(", "net.predict(", ".overlay()", ".save(", "net.maps(",
                 "more.refine("):
        assert call in source, call


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    """About 40 s on one core: a real training is among its cells."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra dev)")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # its files go with the test's
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3",
                                     resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell fails
    outputs = [output for cell in cells(notebook, "code") for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) >= 5 and "ImageSet(" in text and "'first_overlay.jpg'" in text
    assert list(tmp_path.glob("more-*/run/checkpoints/step-000150"))
