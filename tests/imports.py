"""Reads what modules import, from their text: nothing is run.

Imports inside functions and under TYPE_CHECKING count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Module:
    """One file of code.

    Attributes:
        lines: of the file.
        is_face: whether it is the `__init__` of a folder.
        imports: names of modules; of `from a import b` it is `a.b` where that is a module.
        functions: lines of each function, by its name with those around it.
    """

    lines: int
    is_face: bool
    imports: set[str]
    functions: dict[str, int]


def read_modules(*packages: str, root: Path = ROOT) -> dict[str, Module]:
    """All modules of some packages.

    Args:
        packages: folders below the root.
        root: the project's folder.

    Returns:
        Modules by dotted name; a folder's name is that of its `__init__`.
    """
    files = {_name(path, root): path for package in packages
             for path in sorted((root / package).rglob("*.py"))
             if "templates" not in path.parts}
    found = {}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        tree, is_face = ast.parse(text), path.stem == "__init__"
        inside = name if is_face else name.rpartition(".")[0]
        found[name] = Module(len(text.splitlines()), is_face,
                             set(_imports(tree, inside, set(files))),
                             dict(_functions(tree, "")))
    return found


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST, inside: str, known: set[str]) -> Iterator[str]:
    """Names of what a module imports.

    Args:
        tree: the module.
        inside: the package that it lies in, for relative imports.
        known: names of modules.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[:len(inside.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def _functions(tree: ast.AST, before: str) -> Iterator[tuple[str, int]]:
    """Names and lines of functions, those inside classes and functions as well."""
    for node in ast.iter_child_nodes(tree):
        name = before
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{before}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node.end_lineno - node.lineno + 1
        yield from _functions(node, name)


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which reaches all others of its group.

    Args:
        graph: names of modules that each module imports, itself left out.
    """
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[start] = seen
    groups = {frozenset({name} | {other for other in reach[name] if name in reach.get(other, ())})
              for name in graph if name in reach[name]}
    return [set(group) for group in sorted(groups, key=sorted)]
