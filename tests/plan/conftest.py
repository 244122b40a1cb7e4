"""A tiny configuration, as for training."""

from tests.train.conftest import tiny  # noqa: F401
