"""Compiled code of the fast CRF engine: once on a machine, and never somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from more.filtering.crf import available_engine

jit = pytest.importorskip("more.filtering.fast.jit")
NOWHERE = "/proc/no-such-folder"  # cannot be made, even by root
PREPARE = """
import sys, numba
numba.__version__ = sys.argv[1] or numba.__version__
from more.filtering.fast import jit, load
load()
print(any(sum(made.stats.cache_misses.values()) for made in jit._functions), jit.FOLDER)
"""


def start(folder, version="", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, version], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment})


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    compiled, folder = out.split()
    return compiled == "True", folder, err


@pytest.mark.slow
def test_four_processes_on_a_cold_cache_compile_once(tmp_path):
    found = [finish(process) for process in [start(tmp_path) for _ in range(4)]]
    assert sorted(compiled for compiled, _, _ in found) == [False, False, False, True]
    said = next(err for compiled, _, err in found if compiled)
    assert "compiling for this machine, once" in said and "compiled in" in said
    # Warm: no word. Another numba compiles anew and works.
    compiled, folder, err = finish(start(tmp_path))
    assert not compiled and not err and folder.startswith(str(tmp_path))
    compiled, _, err = finish(start(tmp_path, "0.0.1"))
    assert compiled and "compiling for this machine, once" in err


AFTERWARDS = """
import numpy as np, torch
from more.filtering.fast import jit, load, marginals
from more.method.losses.energy import lattice_filter
load()
before = sum(sum(made.stats.cache_misses.values()) for made in jit._functions)
image = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
for labels in range(1, 12):
    marginals(image, np.full((labels, 9, 8), 1 / labels, np.float32), 2, (1., 3.), (67., 3., 4.))
    lattice_filter(torch.rand(2, 3, 9, 8) * 255, torch.rand(2, labels, 9, 8), 50., 15.)
print(sum(sum(made.stats.cache_misses.values()) for made in jit._functions) == before, before)
"""


@pytest.mark.slow
def test_nothing_is_left_to_compile_after_the_start(tmp_path):
    out = subprocess.run([sys.executable, "-c", AFTERWARDS], text=True, capture_output=True,
                         check=True, env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}).stdout
    nothing_more, compiled = out.split()
    assert nothing_more == "True" and int(compiled) > 20


def test_a_folder_that_cannot_be_written_is_named_and_another_serves():
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    compiled, folder, err = finish(start(NOWHERE))
    assert folder.startswith(str(usual))
    assert NOWHERE in err and "compiled code is kept in" in err


def test_the_order_of_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path))
    assert jit.cache_folder() == (tmp_path / "given" / f"crf-{jit._digest()}", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert jit.cache_folder()[0].parent == tmp_path / "cache" / "more"
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    folder, note = jit.cache_folder()
    assert folder.parent == tmp_path / f"more-{os.getuid()}" and NOWHERE in note
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    folder.parent.chmod(0o777)  # others could put code there that we would run
    with pytest.raises(OSError, match="belongs to somebody else.*set NUMBA_CACHE_DIR"):
        jit.cache_folder()


def test_without_any_folder_another_engine_serves(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("more.filtering.fast")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("more.filtering.fast")
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: NOWHERE)
    available_engine.cache_clear()
    try:
        name, why = available_engine()
    finally:
        available_engine.cache_clear()
    assert name in ("pydensecrf", "lattice")
    assert "numba cannot be used" in why and "set NUMBA_CACHE_DIR to one" in why


def test_numba_without_its_compiler_is_no_engine():
    code = "from more.filtering.crf import available_engine; print(*available_engine())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True).stdout
    assert not out.startswith("fast") and "NUMBA_DISABLE_JIT is set" in out


def test_code_of_other_sources_is_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    (tmp_path / "jit.py").write_text("a")
    first = jit._digest()
    (tmp_path / "other.py").write_text("b")
    assert jit._digest() != first
