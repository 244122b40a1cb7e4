"""Commands inside the test process, as in tests/command."""

from tests.command.conftest import run  # noqa: F401
