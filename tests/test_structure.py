"""How the code is built: arrows between modules go down, files and functions have a readable size.

`KNOWN` lists what does not hold yet, by rule. An entry that holds after all fails the test, so the
list can only shrink.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import pytest

from tests.imports import Module, circles, read_modules

# A module imports its own folder and folders of lower floors. Names without a folder are modules
# on the top level of more/.
FLOORS = {
    "errors": 0, "tensors": 0, "device": 0, "progress": 0,
    "palette": 1, "filtering": 1, "data": 1,
    "config": 2, "run_folder": 2,
    "method": 3,
    "jobs": 4,
    "evaluation": 5,
    "refinement": 6, "export": 6,
    "inference": 7,
    "more": 8,  # the package's own face: the Python API, imported when it is used
    "train": 8,
    "plan": 9, "tuning": 9,
    "doctor": 10, "bench": 10, "pipeline": 10,
    "commands": 11, "cli": 12, "__main__": 13,
    "data_tools": 14,  # above all, so that nothing imports it; see ALSO_FORBIDDEN
}
# What a folder does not import although it lies lower.
ALSO_FORBIDDEN = {
    "data_tools": {"method", "refinement", "export", "inference", "train", "plan", "tuning",
                   "doctor", "bench", "commands", "cli"},
}
FACES = ("__init__", "__main__")
SHORTEST, LONGEST, LONGEST_FUNCTION = 25, 350, 30  # lines
# Files that every folder has; no other name stands twice.
SAME_NAME = {"__init__", "__main__"}

KNOWN: dict[str, set[str]] = {}  # e.g. "floors": {"more.a.b imports more.c.d"}


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    """All modules of the package and the converters, by name."""
    return read_modules("more", "data_tools")


@pytest.fixture(scope="module")
def graph(modules) -> dict[str, set[str]]:
    """Which modules each module imports; the face apart, which imports nothing by itself.

    `tests/inference/test_api.py` sees to that.
    """
    return {name: {other for other in module.imports if other in modules and other != name}
            for name, module in modules.items() if name != "more"}


def folder(name: str) -> str:
    """Where a module lies: the folder inside `more`, or `data_tools`; `more` for its own face."""
    parts = name.split(".")
    return parts[1] if parts[0] == "more" and len(parts) > 1 else parts[0]


def compare_with_known(rule: str, found: set[str]) -> None:
    """Fail for a violation that is not listed, and for a listed one that is none any more."""
    known = KNOWN.get(rule, set())
    new, gone = sorted(found - known), sorted(known - found)
    assert not new, f"{rule}: " + "\n".join(new)
    assert not gone, f"{rule}: holds now, so take out of KNOWN:\n" + "\n".join(gone)


def goes_up(own: str, other: str) -> bool:
    """Whether a folder must not import another one."""
    if own == other or other == "more":
        return False
    return FLOORS[other] >= FLOORS[own] or other in ALSO_FORBIDDEN.get(own, ())


def test_every_folder_has_a_floor(modules):
    assert {folder(name) for name in modules} - {"more"} <= set(FLOORS)


def test_modules_import_lower_floors_only(modules):
    compare_with_known("floors", {
        f"{name} imports {other}" for name, module in modules.items() for other in module.imports
        if other in modules and goes_up(folder(name), folder(other))})


def test_inference_leaves_losses_and_training_alone(modules):
    compare_with_known("inference", {
        f"{name} imports {other}" for name, module in modules.items()
        if folder(name) == "inference" for other in module.imports
        if other.startswith(("more.train", "more.method.losses", "deepspeed"))})


def test_there_is_no_circle(graph):
    compare_with_known("circles", {" ".join(sorted(circle)) for circle in circles(graph)})


def test_the_package_imports_no_tests(modules):
    compare_with_known("tests", {
        f"{name} imports {other}" for name, module in modules.items() for other in module.imports
        if other.split(".")[0] == "tests"})


def test_files_are_neither_confetti_nor_scrolls(modules):
    lines = {name: module.lines for name, module in modules.items()
             if name.split(".")[-1] not in FACES and not module.is_face}
    compare_with_known("short files", {name for name, n in lines.items() if n < SHORTEST})
    compare_with_known("long files", {name for name, n in lines.items() if n > LONGEST})
    assert 120 <= median(lines.values()) <= 200


def test_nine_functions_of_ten_are_short(modules):
    lengths = [length for module in modules.values() for length in module.functions.values()]
    assert sum(length <= LONGEST_FUNCTION for length in lengths) >= 0.9 * len(lengths)


def test_names_of_modules_differ(modules):
    places = defaultdict(list)
    for name, module in modules.items():
        if not module.is_face:
            places[name.split(".")[-1]].append(name)
    compare_with_known("same names", {
        " ".join(sorted(names)) for last, names in places.items()
        if len(names) > 1 and last not in SAME_NAME})


def test_imports_are_found_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    for name, text in {"__init__": "", "a": "import one.b\n", "c": "from one import a, nothing\n",
                       "b": "if x:\n    from .c import y\ndef f():\n    import z.q\n"}.items():
        (tmp_path / "one" / f"{name}.py").write_text(text)
    found = read_modules("one", root=tmp_path)
    assert found["one.a"].imports == {"one.b"} and found["one.b"].imports == {"one.c", "z.q"}
    assert found["one.c"].imports == {"one.a", "one"}
    assert found["one.b"].functions == {"f": 2}
    graph = {name: set(module.imports) & set(found) for name, module in found.items()}
    assert circles(graph) == [{"one.a", "one.b", "one.c"}]
