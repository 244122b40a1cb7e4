"""pyproject.toml is the one list of dependencies; requirements.txt and the code agree with it."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
PACKAGES = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LINES}


def wanted() -> list[str]:
    """The lines of requirements.txt that are no comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_install_the_project_with_every_extra_and_have_no_bounds_of_their_own():
    (line,) = wanted()
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)
    assert extras and sorted(extras[1].split(",")) == sorted(EXTRAS), line


def test_every_package_is_bounded_from_both_sides_and_named_once():
    names = [canonicalize_name(Requirement(line).name) for line in LINES]
    assert sorted(set(names)) == sorted(names)
    for requirement in PACKAGES.values():
        signs = {clause.operator for clause in requirement.specifier}
        assert signs in ({">=", "<"}, {"=="}), requirement


def test_only_what_needs_no_compiler_is_installed_without_extras():
    assert "pydensecrf2" not in {Requirement(line).name for line in PROJECT["dependencies"]}


@pytest.mark.parametrize("folder", ["more", "data_tools"])
def test_every_package_that_the_code_imports_is_declared(folder):
    known = metadata.packages_distributions()
    undeclared = {}
    for file in (ROOT / folder).rglob("*.py"):
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            owners = {canonicalize_name(owner) for owner in known.get(name, [name])}
            if not owners & set(PACKAGES) and not by_module(name):
                undeclared.setdefault(name, str(file.relative_to(ROOT)))
    assert not undeclared


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of other projects' modules that a file imports anywhere."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}
    names |= {node.module for node in ast.walk(tree)
              if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    top = {name.split(".")[0] for name in names}
    return top - set(sys.stdlib_module_names) - {"more", "data_tools", "tests"}


def by_module(name: str) -> bool:
    """Whether a declared package brings this module along, or may be missing here."""
    modules = {"llvmlite": "numba",  # a part of it, in the one version that it takes
               "pydensecrf": "pydensecrf2", "distributed": "distributed", "dask": "distributed",
               "segmentation_models_pytorch": "segmentation-models-pytorch"}
    return modules.get(name) in PACKAGES
