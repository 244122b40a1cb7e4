"""Search for thresholds and CRF parameters on a labelled sample: `python -m more tune`."""
