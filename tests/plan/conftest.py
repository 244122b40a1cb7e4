"""The tiny run of the engine's tests."""

from tests.train.conftest import tiny  # noqa: F401 - a fixture
