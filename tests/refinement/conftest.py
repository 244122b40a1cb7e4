"""Commands inside the test process, as in tests/command; masks that one worker made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from more.jobs.ranks import Rank
from more.refinement.plan import open_pair, plan
from more.refinement.refine import refine
from tests.command.conftest import run  # noqa: F401
from tests.refinement.sets import FAST, make_sets


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Seeds, data, and the masks that one worker process makes of them; not to be changed."""
    root = tmp_path_factory.mktemp("sets")
    seeds, data = make_sets(root)
    tally = refine(seeds, data, root / "one", FAST, workers=1, rows_per_shard=3, progress=False)
    assert (tally.done, tally.skipped, tally.failures) == (12, 0, [])
    return seeds, data, root / "one"


@pytest.fixture
def spec(sets, tmp_path):
    """A shard of a job whose output folder exists."""
    (tmp_path / "masks").mkdir()
    how = replace(FAST, engine="lattice")
    return plan(*open_pair(*sets[:2], Rank()), tmp_path / "masks", how, 3)[0]
