"""The tiny set of tests/train."""

from tests.train.conftest import tiny  # noqa: F401 - a fixture
