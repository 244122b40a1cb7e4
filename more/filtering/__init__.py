"""Gaussian filtering in feature space and the dense CRF built on it (`crf` needs no torch)."""
