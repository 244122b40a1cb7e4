"""Measurements for those who work on MoRe itself: `python -m tests.research --help`."""
