"""Freed memory is used again, without new pages from the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import resource, sys, torch
from more.device import keep_freed_memory
found = keep_freed_memory() if sys.argv[1] == "keep" else None

def faults():
    for _ in range(8):
        torch.ones(12 * 2**20), torch.ones(12 * 2**20)  # 48 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

faults()  # until the free blocks have found their places
before = faults()
print(found, faults() - before)
"""


def run(how: str, **more: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GLIBC_", "MALLOC_"))}
    done = subprocess.run([sys.executable, "-c", CODE, how], cwd=ROOT, text=True, check=True,
                          capture_output=True, env={**kept, "PYTHONPATH": str(ROOT), **more})
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "confstr") or "glibc" not in (
    os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="the C library is not glibc")
def test_large_blocks_come_without_new_pages():
    as_always, kept = run("leave"), run("keep")
    assert kept[0] == "True" and int(as_always[1]) > 20 * int(kept[1])


def test_settings_of_the_user_stay():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] == "False"
