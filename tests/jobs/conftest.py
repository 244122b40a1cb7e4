"""Commands in the test process, and masks that one worker made, as for refining."""

from tests.refinement.conftest import run, sets, spec  # noqa: F401
