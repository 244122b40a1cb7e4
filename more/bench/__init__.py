"""Measurements, `python -m more bench NAME`: ratios within one run, alternating rounds."""
