"""The sets and the task that tests of refine use."""

from tests.refine.conftest import run, sets, spec  # noqa: F401
